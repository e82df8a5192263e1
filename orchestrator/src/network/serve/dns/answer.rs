//! What a network's name server knows: its workloads' names and addresses, and services', each tenant's for itself.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::super::super::{Net, Registry, zone};

/// Seconds for which an answer may be kept: who starts anew keeps its address, but for one that is asked for.
const TTL: u32 = 5;
/// What stands between a service's name and its tenant's.
const SERVICE: &str = ".svc";

/// What becomes of a question.
#[derive(Debug)]
pub enum Answer {
    /// It is answered so.
    Known(Message),
    /// Somebody else may know.
    Elsewhere,
    /// It is not answered.
    Nothing,
}

/// That nobody could be asked.
pub fn failure(asked: &Message) -> Message {
    reply(asked, ResponseCode::ServFail)
}

fn reply(asked: &Message, code: ResponseCode) -> Message {
    let mut said = Message::response(asked.metadata.id, asked.metadata.op_code);
    said.metadata.recursion_desired = asked.metadata.recursion_desired;
    said.metadata.recursion_available = true;
    said.metadata.response_code = code;
    said.queries.clone_from(&asked.queries);
    if asked.edns.is_some() {
        said.edns = Some(Edns::new());
    }
    said
}

/// What a question from an address in a network is answered.
pub fn answer(registry: &Registry, net: &Net, from: IpAddr, asked: &Message) -> Answer {
    let inside = match from {
        IpAddr::V4(from) => net.subnet.contains(from),
        IpAddr::V6(_) => false,
    };
    if !inside || asked.metadata.message_type != hickory_proto::op::MessageType::Query {
        return Answer::Nothing;
    }
    if asked.metadata.op_code != OpCode::Query {
        return Answer::Known(reply(asked, ResponseCode::NotImp));
    }
    let [query] = asked.queries.as_slice() else {
        return Answer::Known(reply(asked, ResponseCode::FormErr));
    };
    if query.query_class() != DNSClass::IN {
        return Answer::Known(reply(asked, ResponseCode::Refused));
    }
    let tenant = registry.whose(from).map(|who| who.tenant);
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    if let Some(name) = below_zone(name) {
        let found = tenant.and_then(|tenant| addresses(registry, net, &tenant, name));
        return Answer::Known(said(asked, found));
    }
    let reverse = query.name().parse_arpa_name().ok();
    let reverse = reverse.filter(|found| found.prefix_len() == found.max_prefix_len());
    match reverse.map(|found| found.addr()) {
        Some(address) if is_in(net, address) => {
            let who = registry.whose(address);
            let who = who.filter(|who| Some(&who.tenant) == tenant.as_ref());
            let name = who.and_then(|who| {
                let name = format!("{}.{}.", who.name, zone::search(&who.tenant));
                Name::from_ascii(name).ok()
            });
            Answer::Known(said(asked, name.map(|name| vec![RData::PTR(PTR(name))])))
        }
        _ => Answer::Elsewhere,
    }
}

fn is_in(net: &Net, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => net.subnet.contains(address),
        IpAddr::V6(address) => net.subnet6.is_some_and(|subnet| subnet.contains(address)),
    }
}

/// What stands before the zone's name, if a name is in it.
fn below_zone(name: &str) -> Option<&str> {
    match name.strip_suffix(zone::ZONE)? {
        "" => Some(""),
        name => name.strip_suffix('.'),
    }
}

/// The addresses of a name below the zone, for one tenant; none if there is no such name, and no addresses if there
/// are names below it.
fn addresses(registry: &Registry, net: &Net, tenant: &str, name: &str) -> Option<Vec<RData>> {
    if name.is_empty() || name == tenant {
        return Some(Vec::new());
    }
    let name = name.strip_suffix(tenant)?.strip_suffix('.')?;
    let found = match name.strip_suffix(SERVICE) {
        Some(service) => registry.service(tenant, service),
        None => registry.addresses(net, tenant, name),
    };
    let data = found.into_iter().map(|address| match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    });
    let data: Vec<_> = data.collect();
    (!data.is_empty()).then_some(data)
}

/// The answer with those of the records that are asked for; that there is no such name if there are none at all.
fn said(asked: &Message, found: Option<Vec<RData>>) -> Message {
    let Some(data) = found else {
        let mut said = reply(asked, ResponseCode::NXDomain);
        said.metadata.authoritative = true;
        said.authorities.extend(authority());
        return said;
    };
    let mut said = reply(asked, ResponseCode::NoError);
    said.metadata.authoritative = true;
    if let Some(query) = asked.queries.first() {
        let kind = query.query_type();
        let wanted = data
            .into_iter()
            .filter(|data| kind == RecordType::ANY || data.record_type() == kind);
        let records = wanted.map(|data| Record::from_rdata(query.name().clone(), TTL, data));
        said.answers.extend(records);
    }
    if said.answers.is_empty() {
        said.authorities.extend(authority());
    }
    said
}

/// Who says so, and for how long (RFC 2308 §3).
fn authority() -> Option<Record> {
    let zone = Name::from_ascii(format!("{}.", zone::ZONE)).ok()?;
    let seconds = i32::try_from(TTL).unwrap_or(1);
    let soa = SOA::new(
        zone.clone(),
        zone.clone(),
        1,
        seconds,
        seconds,
        seconds,
        TTL,
    );
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
}

#[cfg(test)]
#[path = "answer_test.rs"]
mod tests;
