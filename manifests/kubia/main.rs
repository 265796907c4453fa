//! The demo's guest: answers over HTTP which pod was hit, as the book's kubia does.
//!
//! Invariant: it ends on SIGTERM also as PID 1, where the kernel ignores the signal unless it is handled.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: kubia [serve | job [COUNT] | crash]";
const PORT: u16 = 8080;
const GREETING_FILE: &str = "/etc/kubia/greeting";
const STACK_BYTES: usize = 64 << 10;
const REQUEST_BYTES_MAX: u64 = 16 << 10;
const CONNECTIONS_MAX: usize = 64;
const IDLE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [] | ["serve"] => serve(),
        ["job"] => job(5),
        ["job", count] => match count.parse() {
            Ok(count) => job(count),
            Err(_) => return refuse(&format!("COUNT must be a number, not {count:?}")),
        },
        ["crash"] => crash(),
        _ => return refuse(USAGE),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => refuse(&error.to_string()),
    }
}

/// Serves until SIGTERM or SIGINT, then lets answers under way finish.
fn serve() -> io::Result<ExitCode> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))
        .map_err(|error| io::Error::new(error.kind(), format!("listen on port {PORT}: {error}")))?;
    let host: Arc<str> = hostname().into();
    println!("kubia {host} listens on port {PORT}");
    let open = Arc::new(AtomicUsize::new(0));
    let counted = open.clone();
    thread::Builder::new().stack_size(STACK_BYTES).spawn(move || accept(&listener, &host, &counted))?;
    signals.forever().next();
    println!("kubia was asked to end");
    let end = Instant::now() + DRAIN;
    while open.load(Ordering::SeqCst) > 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts to `count` and ends: what the demo's Job runs.
fn job(count: u32) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    for step in 1..=count {
        writeln!(out, "step {step} of {count}")?;
        out.flush()?;
        thread::sleep(Duration::from_millis(100));
    }
    writeln!(out, "done")?;
    Ok(ExitCode::SUCCESS)
}

/// Fails after a moment, to see what a restart policy does.
fn crash() -> io::Result<ExitCode> {
    thread::sleep(Duration::from_millis(200));
    eprintln!("kubia crashes, as it was told to");
    Ok(ExitCode::FAILURE)
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("kubia: {why}");
    ExitCode::from(2)
}

fn accept(listener: &TcpListener, host: &Arc<str>, open: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            // Out of descriptors, most likely: give connections time to close.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            let _ = respond(&mut stream, "GET", "503 Service Unavailable", "too many connections\n");
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (host, counted) = (host.clone(), open.clone());
        let answer = move || {
            // A client that goes away is no news.
            let _ = answer(stream, &host);
            counted.fetch_sub(1, Ordering::SeqCst);
        };
        if thread::Builder::new().stack_size(STACK_BYTES).spawn(answer).is_err() {
            open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Answers one request and closes: each new connection may hit another pod.
fn answer(stream: TcpStream, host: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let client = stream.peer_addr()?;
    let mut reader = BufReader::with_capacity(1 << 10, stream).take(REQUEST_BYTES_MAX);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
        line.clear();
    }
    let mut stream = reader.into_inner().into_inner();
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET" | "HEAD", "/healthz") => respond(&mut stream, method, "200 OK", "ok\n"),
        ("GET" | "HEAD", "/") => {
            let mut out = io::stdout().lock();
            writeln!(out, "{method} {path} from {}", client.ip())?;
            out.flush()?;
            drop(out);
            respond(&mut stream, method, "200 OK", &format!("You've hit {host}\n{}\n", greeting()))
        }
        ("GET" | "HEAD", _) => {
            respond(&mut stream, method, "404 Not Found", "only / and /healthz are here\n")
        }
        _ => respond(&mut stream, method, "405 Method Not Allowed", "only GET and HEAD are answered\n"),
    }
}

fn respond(stream: &mut TcpStream, method: &str, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    // HEAD is answered like GET, without the body.
    let body = if method == "HEAD" { "" } else { body };
    stream.write_all((head + body).as_bytes())
}

/// Read at each request: a mounted ConfigMap changes under a running pod, an environment variable does not.
fn greeting() -> String {
    match fs::read_to_string(GREETING_FILE) {
        Ok(text) => text.trim_end().to_owned(),
        Err(_) => env::var("GREETING").unwrap_or_else(|_| "no greeting is configured".into()),
    }
}

fn hostname() -> String {
    match fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) => name.trim_end().to_owned(),
        Err(_) => env::var("HOSTNAME").unwrap_or_else(|_| "unknown".into()),
    }
}
