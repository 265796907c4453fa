//! The node's API over HTTPS, as a fast client sees it: no process per question.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client, Identity, Response};
use serde_json::Value;

use crate::node::Node;

/// An administrator's connection.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    base: String,
}

/// A watch: events as they come.
pub(crate) struct Watch {
    answer: Response,
    rest: Vec<u8>,
}

impl Api {
    /// By the kubeconfig that the node wrote.
    pub(crate) fn of(node: &Node) -> Api {
        let text = std::fs::read_to_string(node.path("kubeconfig")).unwrap();
        Api::parse(&text).unwrap()
    }

    /// By the text of a kubeconfig; None when it is not whole.
    pub(crate) fn parse(text: &str) -> Option<Api> {
        let config: Value = serde_yaml::from_str(text).ok()?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let decode = |value: &Value| STANDARD.decode(value.as_str()?).ok();
        let mut identity = decode(&user["client-key-data"])?;
        identity.extend(decode(&user["client-certificate-data"])?);
        let ca = decode(&cluster["certificate-authority-data"])?;
        let client = Client::builder()
            .no_proxy()
            .tls_certs_only([Certificate::from_pem(&ca).ok()?])
            .identity(Identity::from_pem(&identity).ok()?)
            .timeout(Duration::from_secs(120))
            .build()
            .ok()?;
        Some(Api { client, base: cluster["server"].as_str()?.to_owned() })
    }

    /// Another connection for the same person.
    pub(crate) fn another(node: &Node) -> Api {
        Api::of(node)
    }

    /// GET; the status and the body.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, Vec<u8>), reqwest::Error> {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await?;
        Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
    }

    /// GET of JSON that has to be there.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let (code, body) = self.get(path).await.unwrap();
        assert_eq!(code, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// POST; it has to be created.
    pub(crate) async fn create(&self, path: &str, object: &Value) {
        let answer = self.client.post(format!("{}{path}", self.base)).json(object).send().await.unwrap();
        let code = answer.status().as_u16();
        assert_eq!(code, 201, "POST {path}: {}", answer.text().await.unwrap());
    }

    /// A watch from now on.
    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let version = self.json(path).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let join = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{path}{join}watch=true&resourceVersion={version}", self.base);
        let answer = self.client.get(url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        Watch { answer, rest: Vec::new() }
    }
}

impl Watch {
    /// Returns when the next event is here, without reading it.
    pub(crate) async fn arrives(&mut self) {
        while !self.rest.contains(&b'\n') {
            self.rest.extend_from_slice(&self.answer.chunk().await.unwrap().expect("the watch goes on"));
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap();
        self.rest.drain(..=end);
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            self.rest.extend_from_slice(&self.answer.chunk().await.unwrap().expect("the watch goes on"));
        }
    }
}

/// Threads for a measurement.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(work)
}
