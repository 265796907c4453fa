//! YAML and JSON text → documents whose every node knows its line and column.
//!
//! Invariant: hostile input costs what its size allows: expanded aliases, depth and documents are bounded.
//! Invariant: one unreadable document does not hide those before and after it in the same file.

use std::collections::BTreeMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

use super::scalar;

/// Nodes a document may have after all aliases are written out.
const MOST_NODES: usize = 1_000_000;
/// Nesting that a document may have.
const MOST_DEPTH: usize = 200;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) message: String,
    pub(crate) help: String,
}

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Rc<Node>,
    /// The text could be read but says something twice.
    pub(crate) flaws: Vec<Flaw>,
}

/// A node and where it starts (both from 1).
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) shape: Shape,
    /// Nodes below and including this one, aliases written out.
    size: usize,
    depth: usize,
}

#[derive(Debug)]
pub(crate) enum Shape {
    Scalar(Value),
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) value: Rc<Node>,
}

impl Node {
    /// The node as JSON.
    pub(crate) fn value(&self) -> Value {
        match &self.shape {
            Shape::Scalar(value) => value.clone(),
            Shape::List(items) => Value::Array(items.iter().map(|item| item.value()).collect()),
            Shape::Map(entries) => {
                let fields = entries.iter().map(|entry| (entry.name.clone(), entry.value.value()));
                Value::Object(fields.collect::<Map<String, Value>>())
            }
        }
    }

    /// The entry of a map.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        match &self.shape {
            Shape::Map(entries) => entries.iter().find(|entry| entry.name == name),
            _ => None,
        }
    }

    /// Where a field path (`spec.containers[0].image`) is written: its key's place, or that of the deepest part of the
    /// path that is there.
    pub(crate) fn place(&self, path: &str) -> (u32, u32) {
        let mut node = self;
        let mut place = (self.line, self.column);
        let mut rest = path;
        while let Some((next, at, after)) = node.step(rest) {
            (node, place, rest) = (next, at, after);
        }
        place
    }

    /// One step down a path: keys may hold dots, so the longest key that fits is taken.
    fn step<'a>(&self, rest: &'a str) -> Option<(&Node, (u32, u32), &'a str)> {
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        match &self.shape {
            Shape::List(items) => {
                let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((item.as_ref(), (item.line, item.column), after))
            }
            Shape::Map(entries) => {
                let bracketed = rest.strip_prefix('[').and_then(|inner| inner.split_once(']'));
                let fits = |entry: &&Entry| match bracketed {
                    Some((name, _)) => entry.name == name,
                    None => rest
                        .strip_prefix(entry.name.as_str())
                        .is_some_and(|after| after.is_empty() || after.starts_with(['.', '['])),
                };
                let entry = entries.iter().filter(fits).max_by_key(|entry| entry.name.len())?;
                let after = match bracketed {
                    Some((_, after)) => after,
                    None => &rest[entry.name.len()..],
                };
                Some((entry.value.as_ref(), (entry.line, entry.column), after))
            }
            Shape::Scalar(_) => None,
        }
    }
}

/// Whose reading of plain scalars counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// YAML 1.1, as the API server and kubectl read manifests.
    Kubernetes,
    /// What kustomize makes of resources and patches: `yes` and `on` are text, a date gets its time.
    Kustomize,
}

/// All documents of a text. Each is read by itself, as Kubernetes does it: an anchor does not reach into the next.
pub(crate) fn documents(text: &str) -> Vec<Result<Document, Flaw>> {
    documents_in(text, Dialect::Kubernetes)
}

/// The same in another dialect.
pub(crate) fn documents_in(text: &str, dialect: Dialect) -> Vec<Result<Document, Flaw>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let read = |(first_line, chunk)| read_chunk(first_line, chunk, dialect);
    chunks(text).into_iter().flat_map(read).collect()
}

/// Splits at lines that begin a document. Returns each part with the number of its first line.
fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|after| after.trim_start().len() < after.len() || after.is_empty());
        if marker && offset > start && !is_preamble(&text[start..offset]) {
            parts.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        } else if marker && offset == start {
            start_line = number;
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

/// Directives (`%YAML 1.2`) belong to the document that follows them.
fn is_preamble(part: &str) -> bool {
    let mut lines = part.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
    part.lines().any(|line| line.starts_with('%')) && lines.all(|line| line.starts_with('%'))
}

fn read_chunk(first_line: u32, chunk: &str, dialect: Dialect) -> Vec<Result<Document, Flaw>> {
    let mut parser = Parser::new_from_str(chunk);
    let mut found = Vec::new();
    loop {
        match parser.next_event() {
            Some(Ok((Event::DocumentStart(_), _))) => {
                let mut reader = Reader {
                    parser: &mut parser,
                    first_line,
                    dialect,
                    anchors: BTreeMap::new(),
                    flaws: Vec::new(),
                    merged: 0,
                };
                match reader.document() {
                    Ok(root) => found.push(Ok(Document { root, flaws: reader.flaws })),
                    // After an error the parser only repeats it.
                    Err(flaw) => {
                        found.push(Err(flaw));
                        return found;
                    }
                }
            }
            Some(Ok((Event::StreamEnd, _))) | None => return found,
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                found.push(Err(syntax(&error, first_line)));
                return found;
            }
        }
    }
}

fn syntax(error: &saphyr_parser::ScanError, first_line: u32) -> Flaw {
    let (line, column) = position(error.marker(), first_line);
    let help = if error.info().contains("tab") {
        "YAML is indented with spaces; replace the tab"
    } else {
        "check the indentation and the quotes of this line and the one before"
    };
    Flaw { line, column, message: format!("not YAML: {}", error.info()), help: help.to_owned() }
}

fn position(marker: &saphyr_parser::Marker, first_line: u32) -> (u32, u32) {
    let line = u32::try_from(marker.line().max(1)).unwrap_or(u32::MAX);
    (first_line - 1 + line, u32::try_from(marker.col() + 1).unwrap_or(u32::MAX))
}

struct Reader<'p, 'i> {
    parser: &'p mut Parser<'i, saphyr_parser::StrInput<'i>>,
    first_line: u32,
    dialect: Dialect,
    anchors: BTreeMap<usize, Rc<Node>>,
    flaws: Vec<Flaw>,
    /// Entries looked at for `<<` so far.
    merged: usize,
}

/// A list or map that is still being read.
struct Open {
    line: u32,
    column: u32,
    anchor: usize,
    shape: OpenShape,
}

enum OpenShape {
    List(Vec<Rc<Node>>),
    Map { entries: Vec<Entry>, lines: BTreeMap<String, u32>, merges: Vec<Rc<Node>>, key: Option<Rc<Node>> },
}

impl Reader<'_, '_> {
    /// The root node; the events up to the end of the document are consumed.
    fn document(&mut self) -> Result<Rc<Node>, Flaw> {
        let mut open: Vec<Open> = Vec::new();
        let mut root = None;
        loop {
            let (event, span) = match self.parser.next_event() {
                Some(Ok(event)) => event,
                Some(Err(error)) => return Err(syntax(&error, self.first_line)),
                None => break,
            };
            let (line, column) = position(&span.start, self.first_line);
            let done = match event {
                Event::DocumentEnd | Event::StreamEnd => break,
                Event::SequenceStart(anchor, _) => {
                    self.opened(
                        &mut open,
                        Open { line, column, anchor, shape: OpenShape::List(Vec::new()) },
                    )?;
                    continue;
                }
                Event::MappingStart(anchor, _) => {
                    let shape = OpenShape::Map {
                        entries: Vec::new(),
                        lines: BTreeMap::new(),
                        merges: Vec::new(),
                        key: None,
                    };
                    self.opened(&mut open, Open { line, column, anchor, shape })?;
                    continue;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let value = self.scalar(&text, style, tag.as_deref(), span)?;
                    self.closed(anchor, node(line, column, Shape::Scalar(value)))?
                }
                Event::Alias(anchor) => self.anchors.get(&anchor).cloned().ok_or_else(|| {
                    flaw(
                        line,
                        column,
                        "an alias to something that is not complete yet",
                        "use the anchor only after the node that it names",
                    )
                })?,
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(ended) = open.pop() else { break };
                    let (line, column, anchor) = (ended.line, ended.column, ended.anchor);
                    let shape = self.shape(ended)?;
                    self.closed(anchor, node(line, column, shape))?
                }
                _ => continue,
            };
            match open.last_mut() {
                None => root = Some(done),
                Some(parent) => self.put(parent, done)?,
            }
        }
        Ok(root.unwrap_or_else(|| Rc::new(node(self.first_line, 1, Shape::Scalar(Value::Null)))))
    }

    fn opened(&self, open: &mut Vec<Open>, next: Open) -> Result<(), Flaw> {
        if open.len() >= MOST_DEPTH {
            return Err(flaw(
                next.line,
                next.column,
                "nested too deeply",
                "no Kubernetes object is nested this deep",
            ));
        }
        open.push(next);
        Ok(())
    }

    /// Remembers an anchored node, and refuses what would grow without bound when aliases are written out.
    fn closed(&mut self, anchor: usize, node: Node) -> Result<Rc<Node>, Flaw> {
        if node.size > MOST_NODES || node.depth > MOST_DEPTH {
            return Err(flaw(
                node.line,
                node.column,
                "written out, the aliases of this document are too large",
                "write less with anchors and aliases",
            ));
        }
        let node = Rc::new(node);
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    fn put(&mut self, parent: &mut Open, done: Rc<Node>) -> Result<(), Flaw> {
        match &mut parent.shape {
            OpenShape::List(items) => items.push(done),
            OpenShape::Map { entries, lines, merges, key } => match key.take() {
                None => *key = Some(done),
                Some(name) => {
                    if is_merge(&name) {
                        merges.push(done);
                    } else {
                        if let Some(entry) = self.entry(lines, &name, done)? {
                            entries.push(entry);
                        }
                    }
                }
            },
        }
        Ok(())
    }

    /// A map's entry; nothing if its key was there before.
    fn entry(
        &mut self,
        lines: &mut BTreeMap<String, u32>,
        key: &Node,
        value: Rc<Node>,
    ) -> Result<Option<Entry>, Flaw> {
        let name = match &key.shape {
            Shape::Scalar(name) => scalar::key(name),
            _ => None,
        };
        let Some(name) = name else {
            return Err(flaw(key.line, key.column, "a map's key has to be a string", "quote the key"));
        };
        if let Some(first) = lines.get(&name) {
            self.flaws.push(flaw(
                key.line,
                key.column,
                &format!("key \"{name}\" is written twice, first in line {first}"),
                "remove one of the two",
            ));
            return Ok(None);
        }
        lines.insert(name.clone(), key.line);
        Ok(Some(Entry { name, line: key.line, column: key.column, value }))
    }

    /// Completes a list or map. What a map says itself wins over what it merges (`<<`), earlier merges over later ones.
    fn shape(&mut self, ended: Open) -> Result<Shape, Flaw> {
        let (mut entries, mut lines, merges) = match ended.shape {
            OpenShape::List(items) => return Ok(Shape::List(items)),
            OpenShape::Map { entries, lines, merges, .. } => (entries, lines, merges),
        };
        let not_a_map = |node: &Node| {
            flaw(node.line, node.column, "\"<<\" merges maps only", "refer to a map, or to a list of maps")
        };
        for merge in merges {
            let sources = match &merge.shape {
                Shape::List(items) => items.clone(),
                _ => vec![Rc::clone(&merge)],
            };
            for source in sources {
                let Shape::Map(merged) = &source.shape else { return Err(not_a_map(&merge)) };
                self.merged += merged.len();
                if self.merged > MOST_NODES {
                    return Err(flaw(
                        merge.line,
                        merge.column,
                        "this document merges too much",
                        "write less with \"<<\"",
                    ));
                }
                for entry in merged {
                    if !lines.contains_key(&entry.name) {
                        lines.insert(entry.name.clone(), entry.line);
                        entries.push(entry.clone());
                    }
                }
            }
        }
        Ok(Shape::Map(entries))
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Value, Flaw> {
        let kind = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
        let refuse = |message: &str| {
            let (line, column) = position(&span.start, self.first_line);
            Err(flaw(line, column, message, "write the value in the form that its field wants"))
        };
        match kind {
            Some("str") => Ok(Value::String(text.to_owned())),
            Some("binary") => refuse("!!binary is not read here; Secrets hold base64 as a plain string"),
            Some("int" | "float" | "bool" | "null") => scalar::resolve(text).or_else(refuse),
            _ if style == ScalarStyle::Plain => match self.dialect {
                Dialect::Kubernetes => scalar::resolve(text).or_else(refuse),
                Dialect::Kustomize => scalar::resolve_for_kustomize(text).or_else(refuse),
            },
            _ => Ok(Value::String(text.to_owned())),
        }
    }
}

fn is_merge(key: &Node) -> bool {
    matches!(&key.shape, Shape::Scalar(Value::String(name)) if name == "<<")
}

fn flaw(line: u32, column: u32, message: &str, help: &str) -> Flaw {
    Flaw { line, column, message: message.to_owned(), help: help.to_owned() }
}

fn node(line: u32, column: u32, shape: Shape) -> Node {
    let below: Vec<(usize, usize)> = match &shape {
        Shape::Scalar(_) => Vec::new(),
        Shape::List(items) => items.iter().map(|item| (item.size, item.depth)).collect(),
        Shape::Map(entries) => entries.iter().map(|entry| (entry.value.size, entry.value.depth)).collect(),
    };
    let size = below.iter().fold(1usize, |sum, (size, _)| sum.saturating_add(*size));
    let depth = 1 + below.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
    Node { line, column, shape, size, depth }
}
