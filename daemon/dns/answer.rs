//! From a question's bytes to an answer, or to what must be asked of others. Pure.
//!
//! Invariant: anything may be in the bytes; the outcome is an answer, a question for others or silence.

use crate::table::{Found, Record as Entry, Table};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// Seconds that an answer may be kept, yes or no. Short: pods come and go.
const TTL: u32 = 5;
/// What fits into one packet on any path, as agreed for DNS (RFC 9715).
const PAYLOAD: u16 = 1232;
/// Aliases followed inside of the table, against circles.
const MOST_ALIASES: usize = 8;

/// What is to be done about a question.
pub(crate) enum Outcome {
    /// Send this.
    Answer(Message),
    /// Pass the question on as it is; where nobody answers, send the message.
    Ask(Message),
    /// The answer ends with an alias to elsewhere: ask for it and send all.
    Complete(Message, Query),
    /// Send nothing: it was no question.
    Silence,
}

/// Decides about one question. Without a table nothing of the cluster is known yet.
pub(crate) fn answer(table: Option<&Table>, bytes: &[u8]) -> Outcome {
    let Ok(request) = Message::from_vec(bytes) else { return unreadable(bytes) };
    if request.metadata.message_type != MessageType::Query {
        return Outcome::Silence;
    }
    let mut response = empty_response(&request);
    let code = match request.queries.as_slice() {
        _ if request.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
        _ if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) => ResponseCode::BADVERS,
        [query] if query.query_class() != DNSClass::IN => ResponseCode::Refused,
        [query] if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) => ResponseCode::Refused,
        [query] => return about(table, query, response),
        _ => ResponseCode::FormErr,
    };
    response.metadata.response_code = code;
    Outcome::Answer(response)
}

/// The message in at most as many bytes as the client can take; cut short, it says so, and the client asks by TCP.
pub(crate) fn fit(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit { Some(whole) } else { message.truncate().to_vec().ok() }
}

/// How many bytes of UDP the client of this question takes.
pub(crate) fn payload(bytes: &[u8]) -> usize {
    let edns = Message::from_vec(bytes).ok().and_then(|message| message.edns);
    edns.map_or(512, |edns| usize::from(edns.max_payload().clamp(512, PAYLOAD)))
}

fn about(table: Option<&Table>, query: &Query, mut response: Message) -> Outcome {
    let Some(table) = table else {
        response.metadata.response_code = ResponseCode::ServFail;
        return Outcome::Answer(response);
    };
    let mut name = plain(query.name());
    let mut owner = query.name().clone();
    for _ in 0..MOST_ALIASES {
        let entries = match table.find(&name) {
            Found::Elsewhere if response.answers.is_empty() => {
                response.metadata.response_code = ResponseCode::ServFail;
                return Outcome::Ask(response);
            }
            Found::Elsewhere => return Outcome::Complete(response, Query::query(owner, query.query_type())),
            Found::Nothing => {
                response.metadata.response_code = ResponseCode::NXDomain;
                return without(table, response);
            }
            Found::Name(entries) => entries,
        };
        response.metadata.authoritative = true;
        let alias = entries.iter().find_map(|entry| match entry {
            Entry::Alias(target) => Some(target.clone()),
            _ => None,
        });
        let Some(alias) = alias.filter(|_| query.query_type() != RecordType::CNAME) else {
            return found(table, query, &owner, &entries, response);
        };
        let Ok(target) = Name::from_ascii(format!("{alias}.")) else { break };
        response.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
        (name, owner) = (alias, target);
    }
    response.metadata.response_code = ResponseCode::ServFail;
    Outcome::Answer(response)
}

fn found(table: &Table, query: &Query, owner: &Name, entries: &[Entry], mut response: Message) -> Outcome {
    let kind = query.query_type();
    let mut records: Vec<RData> = entries.iter().filter_map(data).collect();
    if plain(owner) == table.domain {
        records.extend(authority(table));
    }
    records.retain(|data| kind == RecordType::ANY || data.record_type() == kind);
    if records.is_empty() {
        return without(table, response);
    }
    // Clients take the first: another one comes first with each question.
    let turn = usize::from(response.metadata.id) % records.len();
    records.rotate_left(turn);
    response.add_answers(records.into_iter().map(|data| Record::from_rdata(owner.clone(), TTL, data)));
    Outcome::Answer(response)
}

/// No such name or record: the zone's SOA says for how long that may be remembered (RFC 2308).
fn without(table: &Table, mut response: Message) -> Outcome {
    response.metadata.authoritative = true;
    if let (Some(soa), Ok(zone)) = (authority(table), Name::from_ascii(format!("{}.", table.domain))) {
        response.add_authority(Record::from_rdata(zone, TTL, soa));
    }
    Outcome::Answer(response)
}

fn authority(table: &Table) -> Option<RData> {
    let server = Name::from_ascii(format!("ns.dns.{}.", table.domain)).ok()?;
    let person = Name::from_ascii(format!("hostmaster.{}.", table.domain)).ok()?;
    let ttl = TTL.cast_signed();
    // Nobody copies the zone: its serial number means nothing.
    Some(RData::SOA(SOA::new(server, person, 1, ttl, ttl, ttl, TTL)))
}

fn data(entry: &Entry) -> Option<RData> {
    let name = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    Some(match entry {
        Entry::Address(ip) => RData::A(A(*ip)),
        Entry::Service { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
        Entry::Alias(target) => RData::CNAME(CNAME(name(target)?)),
        Entry::Pointer(target) => RData::PTR(PTR(name(target)?)),
        Entry::NameServer(target) => RData::NS(NS(name(target)?)),
        Entry::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
    })
}

fn empty_response(request: &Message) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        response.set_edns(edns);
    }
    response
}

/// A header that can be read is answered, unless it is an answer itself.
fn unreadable(bytes: &[u8]) -> Outcome {
    match bytes {
        [high, low, flags, _, _, _, _, _, _, _, _, _, ..] if flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            Outcome::Answer(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
        }
        _ => Outcome::Silence,
    }
}

/// The name as the table holds it.
fn plain(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::table;
    use proptest::prelude::*;

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.id = 0;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message
    }

    fn ask(name: &str, kind: RecordType) -> Outcome {
        answer(Some(&table()), &question(name, kind).to_vec().expect("bytes"))
    }

    fn reply(name: &str, kind: RecordType) -> Message {
        match ask(name, kind) {
            Outcome::Answer(message) => message,
            _ => panic!("{name} is answered here"),
        }
    }

    fn answers(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn records_of_the_asked_type_are_answered() {
        let web = "web.default.svc.cluster.local.";
        assert_eq!(answers(&reply(web, RecordType::A)), ["10.2.0.5"]);
        assert_eq!(answers(&reply("WEB.default.SVC.cluster.local.", RecordType::A)), ["10.2.0.5"]);
        assert_eq!(
            answers(&reply("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV)),
            ["0 100 80 web.default.svc.cluster.local."]
        );
        assert_eq!(answers(&reply("5.0.2.10.in-addr.arpa.", RecordType::PTR)), [web]);
        assert!(reply(web, RecordType::A).metadata.authoritative);
    }

    #[test]
    fn no_name_and_no_record_are_told_apart_and_may_be_remembered_shortly() {
        let none = reply("no.default.svc.cluster.local.", RecordType::A);
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
        let other = reply("web.default.svc.cluster.local.", RecordType::AAAA);
        assert_eq!(other.metadata.response_code, ResponseCode::NoError);
        for message in [none, other] {
            assert!(message.answers.is_empty());
            assert_eq!(message.authorities[0].data.record_type(), RecordType::SOA);
            assert_eq!(message.authorities[0].ttl, TTL);
        }
    }

    #[test]
    fn an_alias_inside_is_followed_and_one_outside_is_asked_for() {
        assert_eq!(
            answers(&reply("near.default.svc.cluster.local.", RecordType::A)),
            ["web.default.svc.cluster.local.", "10.2.0.5"]
        );
        match ask("away.default.svc.cluster.local.", RecordType::A) {
            Outcome::Complete(message, query) => {
                assert_eq!(answers(&message), ["example.com."]);
                assert_eq!(query.name().to_ascii(), "example.com.");
            }
            _ => panic!("the alias leads outside"),
        }
    }

    #[test]
    fn others_names_are_passed_on_and_transfers_refused() {
        assert!(matches!(ask("example.com.", RecordType::A), Outcome::Ask(_)));
        assert_eq!(reply("cluster.local.", RecordType::AXFR).metadata.response_code, ResponseCode::Refused);
        assert_eq!(reply("cluster.local.", RecordType::SOA).answers.len(), 1);
    }

    #[test]
    fn what_is_not_known_yet_is_no_such_name_for_nobody() {
        let bytes = question("web.default.svc.cluster.local.", RecordType::A).to_vec().expect("bytes");
        match answer(None, &bytes) {
            Outcome::Answer(message) => assert_eq!(message.metadata.response_code, ResponseCode::ServFail),
            _ => panic!("answered"),
        }
    }

    #[test]
    fn an_answer_too_long_is_cut_and_says_so() {
        let mut message = reply("web.default.svc.cluster.local.", RecordType::A);
        let more = message.answers[0].clone();
        message.add_answers(std::iter::repeat_n(more, 100));
        let cut = fit(&message, 512).expect("bytes");
        assert!(cut.len() <= 512);
        assert!(Message::from_vec(&cut).expect("readable").metadata.truncation);
        assert!(fit(&message, 65535).expect("bytes").len() > 512);
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            answer(Some(&table()), &bytes);
        }

        #[test]
        fn a_question_damaged_anywhere_is_survived(at in 0usize..40, with in any::<u8>()) {
            let mut bytes = question("web.default.svc.cluster.local.", RecordType::A).to_vec().expect("bytes");
            let length = bytes.len();
            bytes[at % length] = with;
            if let Outcome::Answer(message) = answer(Some(&table()), &bytes) {
                prop_assert!(fit(&message, 512).is_none_or(|bytes| bytes.len() <= 512));
            }
        }
    }
}
