//! Tests of the connections' logic, without a socket.

use std::rc::Rc;

use proptest::prelude::*;

use super::super::connection::{BUF_ALLOC, MAX_PAYLOAD};
use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::*;

const CID: u64 = 5;

/// A socket whose closing can be seen.
type Socket = Rc<()>;

struct Bench {
    muxer: Muxer<Socket>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            muxer: Muxer::new(CID, Arc::default()),
        }
    }

    fn guest(&self, ports: (u32, u32), op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            kind: STREAM,
            op: op as u16,
            buf_alloc: 10_000,
            ..Header::default()
        }
    }

    fn says(&mut self, ports: (u32, u32), op: Op) -> Action {
        let header = self.guest(ports, op);
        self.muxer.packet(&header, 0)
    }

    fn shuts(&mut self, ports: (u32, u32), flags: u32) -> Action {
        let header = Header {
            flags,
            ..self.guest(ports, Op::Shutdown)
        };
        self.muxer.packet(&header, 0)
    }

    fn data(&mut self, ports: (u32, u32), len: u32) -> Action {
        let header = Header {
            len,
            ..self.guest(ports, Op::Data)
        };
        self.muxer.packet(&header, len.into())
    }

    /// A connection that the guest opened, with its response taken.
    fn open(&mut self, ports: (u32, u32)) -> (Id, Socket) {
        let socket = Socket::default();
        assert_eq!(self.says(ports, Op::Request), Action::Connect);
        let request = self.guest(ports, Op::Request);
        let id = self.muxer.connected(&request, socket.clone()).unwrap();
        assert_eq!(self.packet().op(), Some(Op::Response));
        self.muxer.get(id).unwrap().host_idle();
        assert_eq!(self.muxer.next(), None);
        (id, socket)
    }

    fn client(&mut self) -> (Option<Id>, Socket) {
        let socket = Socket::default();
        (self.muxer.client(socket.clone()), socket)
    }

    fn packet(&mut self) -> Header {
        match self.muxer.next() {
            Some(Next::Packet(header)) => header,
            other => panic!("no packet: {other:?}"),
        }
    }

    fn readable(&mut self, id: Id) -> Option<Next> {
        self.muxer.get(id).unwrap().host_readable();
        self.muxer.settle(id);
        self.muxer.next()
    }
}

fn closed(socket: &Socket) -> bool {
    Rc::strong_count(socket) == 1
}

#[test]
fn a_handshake_becomes_a_request_and_a_response_a_greeting() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    let id = id.unwrap();
    assert!(bench.muxer.needs_clock());
    assert!(bench.muxer.handshake(id, b"CONNECT"));
    assert!(!bench.muxer.has_packets());
    assert!(!bench.muxer.handshake(id, b" 70\n"));
    let request = bench.packet();
    assert_eq!((request.op(), request.dst_port), (Some(Op::Request), 70));
    assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, CID));
    let ports = (request.src_port, 70);
    assert_eq!(bench.says(ports, Op::Response), Action::Greet(id));
    assert!(!bench.muxer.needs_clock() && !closed(&socket));
}

#[test]
fn a_handshake_and_a_request_have_a_deadline() {
    let mut bench = Bench::new();
    let (_, silent) = bench.client();
    let (asking, asked) = bench.client();
    bench.muxer.handshake(asking.unwrap(), b"CONNECT 1\n");
    assert_eq!(bench.packet().op(), Some(Op::Request));
    for _ in 0..HANDSHAKE_TICKS {
        assert!(!closed(&silent));
        bench.muxer.tick();
    }
    assert!(closed(&silent) && !closed(&asked));
    for _ in 0..REQUEST_TICKS {
        bench.muxer.tick();
    }
    assert!(closed(&asked) && !bench.muxer.needs_clock());
    assert_eq!(bench.packet().op(), Some(Op::Reset));
    assert_eq!(
        bench.muxer.next(),
        None,
        "nothing for the one it never knew"
    );
}

#[test]
fn an_open_connection_has_no_deadline() {
    let mut bench = Bench::new();
    let (_, socket) = bench.open((1, 2));
    for _ in 0..1000 {
        bench.muxer.tick();
    }
    assert!(!closed(&socket));
}

#[test]
fn one_handshake_too_many_replaces_the_oldest() {
    let mut bench = Bench::new();
    let clients: Vec<_> = (0..=MAX_HANDSHAKES).map(|_| bench.client()).collect();
    assert!(clients.iter().all(|(id, _)| id.is_some()));
    let open: Vec<bool> = clients.iter().map(|(_, s)| !closed(s)).collect();
    assert!(!open[0] && open[1..].iter().all(|o| *o));
}

#[test]
fn a_full_table_refuses_unless_a_connection_only_waits_for_its_end() {
    let mut bench = Bench::new();
    let all: Vec<_> = (0..MAX_CONNECTIONS as u32)
        .map(|port| bench.open((1, port)))
        .collect();
    let request = bench.guest((2, 2), Op::Request);
    assert_eq!(bench.muxer.connected(&request, Socket::default()), None);
    assert_eq!(bench.packet().op(), Some(Op::Reset));
    assert_eq!(bench.client().0, None);

    let (closing, _) = &all[7];
    bench.muxer.get(*closing).unwrap().host_ended();
    bench.muxer.hung_up(*closing);
    assert_eq!(bench.packet().flags, SHUTDOWN_BOTH);
    assert!(bench.muxer.connected(&request, Socket::default()).is_some());
    let reset = bench.packet();
    assert_eq!((reset.op(), reset.dst_port), (Some(Op::Reset), 7));
    assert!(bench.muxer.get(*closing).is_none());
}

#[test]
fn an_id_names_nothing_after_its_slot_was_used_again() {
    let mut bench = Bench::new();
    let (old, _) = bench.open((1, 1));
    assert_eq!(bench.says((1, 1), Op::Reset), Action::Nothing);
    let (new, _) = bench.open((1, 1));
    assert_eq!(old.slot, new.slot);
    assert!(bench.muxer.get(old).is_none() && bench.muxer.get(new).is_some());
}

#[test]
fn answers_are_bounded_by_holding_the_guest_back() {
    let mut bench = Bench::new();
    let mut taken = 0;
    while bench.muxer.takes_packets() {
        bench.says((9, 9), Op::Data);
        taken += 1;
    }
    assert_eq!(taken, MAX_REPLIES);
    bench.packet();
    assert!(bench.muxer.takes_packets());
}

#[test]
fn a_read_never_exceeds_the_guests_credit_which_is_asked_for_once() {
    let mut bench = Bench::new();
    let ports = (1, 1);
    let (id, _) = bench.open(ports);
    assert_eq!(bench.readable(id), Some(Next::Read { id, limit: 10_000 }));
    assert_eq!(bench.muxer.read(id, 9_000).unwrap().len, 9_000);
    assert_eq!(bench.muxer.next(), Some(Next::Read { id, limit: 1_000 }));
    bench.muxer.read(id, 1_000);
    assert_eq!(bench.packet().op(), Some(Op::CreditRequest));
    assert_eq!(bench.readable(id), None);
    let update = Header {
        fwd_cnt: 4_000,
        ..bench.guest(ports, Op::CreditUpdate)
    };
    bench.muxer.packet(&update, 0);
    assert_eq!(bench.muxer.next(), Some(Next::Read { id, limit: 4_000 }));
    let lie = Header {
        buf_alloc: u32::MAX,
        fwd_cnt: u32::MAX,
        ..update
    };
    bench.muxer.packet(&lie, 0);
    let limit = MAX_PAYLOAD;
    assert_eq!(bench.readable(id), Some(Next::Read { id, limit }));
}

#[test]
fn the_guest_hears_of_freed_space_before_it_runs_out() {
    let mut bench = Bench::new();
    let (id, _) = bench.open((1, 1));
    let half = BUF_ALLOC / 2;
    let write = |len| Action::Write { id, len };
    assert_eq!(bench.data((1, 1), half - 1), write(half - 1));
    bench.muxer.get(id).unwrap().forwarded(half - 1);
    bench.muxer.settle(id);
    assert_eq!(bench.muxer.next(), None);
    assert_eq!(bench.data((1, 1), 1), write(1));
    bench.muxer.get(id).unwrap().forwarded(1);
    bench.muxer.settle(id);
    let update = bench.packet();
    assert_eq!(
        (update.op(), update.fwd_cnt),
        (Some(Op::CreditUpdate), half)
    );
    assert_eq!(update.buf_alloc, BUF_ALLOC);
    assert_eq!(bench.muxer.next(), None);
    bench.says((1, 1), Op::CreditRequest);
    assert_eq!(bench.packet().op(), Some(Op::CreditUpdate));
}

#[test]
fn more_than_the_credit_is_a_reset() {
    let mut bench = Bench::new();
    let (id, socket) = bench.open((1, 1));
    bench.data((1, 1), BUF_ALLOC);
    let kept = vec![0; BUF_ALLOC as usize];
    bench.muxer.get(id).unwrap().keep(&kept);
    assert_eq!(bench.data((1, 1), 1), Action::Nothing);
    assert_eq!(bench.packet().op(), Some(Op::Reset));
    assert!(closed(&socket));
}

#[test]
fn data_after_a_shutdown_is_a_reset() {
    let mut bench = Bench::new();
    let (_, socket) = bench.open((1, 1));
    bench.shuts((1, 1), SHUTDOWN_SEND);
    assert_eq!(bench.data((1, 1), 1), Action::Nothing);
    assert_eq!(bench.packet().op(), Some(Op::Reset));
    assert!(closed(&socket));
}

#[test]
fn data_for_a_host_program_that_left_is_dropped_without_a_reset() {
    let mut bench = Bench::new();
    let (id, socket) = bench.open((1, 1));
    bench.muxer.hung_up(id);
    assert_eq!(bench.packet().flags, SHUTDOWN_RECEIVE);
    assert_eq!(bench.data((1, 1), 100), Action::Nothing);
    bench.muxer.get(id).unwrap().host_ended();
    bench.muxer.settle(id);
    assert!(closed(&socket));
    assert_eq!(bench.packet().flags, SHUTDOWN_BOTH);
    assert_eq!(bench.data((1, 1), 100), Action::Nothing);
    assert_eq!(bench.muxer.next(), None);
    // The guest may use its port again before it agreed to the end.
    bench.open((1, 1));
}

#[test]
fn a_guest_that_closed_is_forgotten_and_what_it_sent_is_drained() {
    let mut bench = Bench::new();
    let (id, socket) = bench.open((1, 1));
    bench.data((1, 1), 4);
    bench.muxer.get(id).unwrap().keep(b"last");
    bench.shuts((1, 1), SHUTDOWN_BOTH);
    assert_eq!(bench.packet().op(), Some(Op::Reset));
    assert!(!closed(&socket));
    let (other, _) = bench.open((1, 1));
    assert_ne!(id, other);
    bench.muxer.get(id).unwrap().drained(4);
    bench.muxer.settle(id);
    assert!(closed(&socket));
    assert_eq!(bench.muxer.next(), None);
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new();
    let ids: Vec<Id> = (0..4).map(|port| bench.open((1, port)).0).collect();
    for id in &ids {
        bench.muxer.get(*id).unwrap().host_readable();
        bench.muxer.settle(*id);
    }
    for round in 0..3 {
        for expected in &ids {
            match bench.muxer.next() {
                Some(Next::Read { id, .. }) => {
                    assert_eq!(id, *expected, "round {round}");
                    bench.muxer.read(id, 1);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Packet {
        host: u32,
        guest: u32,
        op: u16,
        len: u32,
        flags: u32,
        alloc: u32,
        fwd: u32,
    },
    Client(Vec<u8>),
    Next {
        bytes: u32,
        end: u8,
    },
    Readable(u8),
    Drain(u8, u16),
    HangUp(u8),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![0u32..3, FIRST_PORT..FIRST_PORT + 3];
    let line = prop_oneof![
        Just(b"CONNECT 1\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..33)
    ];
    let len = prop_oneof![0u32..3, 0..=BUF_ALLOC, any::<u32>()];
    let alloc = prop_oneof![0u32..3, Just(100_000), any::<u32>()];
    prop_oneof![
        8 => (port, 0u32..3, 0u16..9, len, 0u32..8, alloc, 0u32..9).prop_map(
            |(host, guest, op, len, flags, alloc, fwd)| Step::Packet { host, guest, op, len, flags, alloc, fwd }),
        2 => line.prop_map(Step::Client),
        6 => (any::<u32>(), 0u8..8).prop_map(|(bytes, end)| Step::Next { bytes, end }),
        2 => any::<u8>().prop_map(Step::Readable),
        2 => any::<(u8, u16)>().prop_map(|(i, n)| Step::Drain(i, n)),
        1 => any::<u8>().prop_map(Step::HangUp),
        1 => Just(Step::Tick),
    ]
}

impl Bench {
    fn any_id(&self, pick: u8) -> Option<Id> {
        let count = self.muxer.slots.len();
        let slot = usize::from(pick).checked_rem(count)?;
        let serial = self.muxer.slots[slot].connection.as_ref()?.serial;
        Some(Id {
            slot: slot as u32,
            serial,
        })
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Packet {
                host,
                guest,
                op,
                len,
                flags,
                alloc,
                fwd,
            } => {
                let header = Header {
                    op,
                    len,
                    flags,
                    buf_alloc: alloc,
                    fwd_cnt: fwd,
                    ..self.guest((host, guest), Op::Request)
                };
                match self.muxer.packet(&header, u64::from(len) | 1) {
                    Action::Connect if host % 2 == 0 => self.muxer.refuse(&header),
                    Action::Connect => drop(self.muxer.connected(&header, Socket::default())),
                    Action::Write { id, len } => {
                        let c = self.muxer.get(id).unwrap();
                        let now = if c.flushed() { len / 2 } else { 0 };
                        c.forwarded(now);
                        c.keep(&vec![0; (len - now) as usize]);
                        assert!(c.backlog().0.len() + c.backlog().1.len() <= BUF_ALLOC as usize);
                        self.muxer.settle(id);
                    }
                    _ => {}
                }
            }
            Step::Client(line) => {
                if let Some(id) = self.client().0 {
                    self.muxer.handshake(id, &line);
                }
            }
            Step::Next { bytes, end } => {
                if let Some(Next::Read { id, limit }) = self.muxer.next() {
                    let c = self.muxer.get(id).unwrap();
                    assert!(limit > 0 && limit <= c.credit().min(MAX_PAYLOAD));
                    match end {
                        0 => c.host_ended(),
                        1 => c.host_idle(),
                        _ => drop(self.muxer.read(id, bytes % limit + 1)),
                    }
                    self.muxer.settle(id);
                }
            }
            Step::Readable(i) => {
                if let Some(id) = self.any_id(i) {
                    self.muxer.get(id).unwrap().host_readable();
                    self.muxer.settle(id);
                }
            }
            Step::Drain(i, n) => {
                if let Some(id) = self.any_id(i) {
                    self.muxer.get(id).unwrap().drained(n.into());
                    self.muxer.settle(id);
                }
            }
            Step::HangUp(i) => {
                if let Some(id) = self.any_id(i) {
                    self.muxer.hung_up(id);
                }
            }
            Step::Tick => self.muxer.tick(),
        }
    }

    fn check(&self) {
        let live: Vec<_> = self
            .muxer
            .slots
            .iter()
            .filter_map(|s| s.connection.as_ref())
            .collect();
        assert_eq!(live.len(), self.muxer.live());
        assert!(live.len() <= MAX_CONNECTIONS);
        let waiting =
            |c: &&&Connection<Socket>| matches!(c.phase, Phase::Handshake(_) | Phase::Requested);
        assert_eq!(live.iter().filter(waiting).count(), self.muxer.waiting);
        for (key, slot) in &self.muxer.keys {
            let c = self.muxer.slots[*slot as usize]
                .connection
                .as_ref()
                .unwrap();
            assert_eq!(*key, (c.host_port, c.guest_port));
        }
        let keyed = live
            .iter()
            .filter(|c| !matches!(c.phase, Phase::Handshake(_) | Phase::Draining));
        assert_eq!(keyed.count(), self.muxer.keys.len());
        for (index, slot) in self.muxer.slots.iter().enumerate() {
            let Some(c) = &slot.connection else { continue };
            // Whoever has something to say is in line, and once.
            let places = self
                .muxer
                .ready
                .iter()
                .filter(|s| **s == index as u32)
                .count();
            assert_eq!(places, usize::from(slot.queued));
            assert!(slot.queued || !c.has_work());
            assert_eq!(c.socket.is_none(), matches!(c.phase, Phase::Closing));
        }
    }
}

proptest! {
    /// Whatever the guest and host programs do, in whatever order, the books stay in order.
    #[test]
    fn any_sequence_keeps_the_invariants(steps in prop::collection::vec(step(), 1..200)) {
        let mut bench = Bench::new();
        for step in steps {
            bench.take(step);
            bench.check();
        }
        // What is left is said, and then there is silence.
        for _ in 0..MAX_CONNECTIONS * 8 {
            match bench.muxer.next() {
                Some(Next::Read { id, .. }) => {
                    bench.muxer.get(id).unwrap().host_idle();
                    bench.muxer.settle(id);
                }
                Some(_) => {}
                None => break,
            }
        }
        prop_assert!(!bench.muxer.has_packets());
    }
}
