//! Resources: what users declare and what is found. Every kind is metadata, a spec and a status; what is the
//! same for all of them is here, what is a kind's own is in its room.

mod baremetal;
mod container;
mod elastic;
mod event;
mod fields;
mod firstboot;
mod host;
mod kind;
mod meta;
mod microvm;
mod namespace;
mod network;
mod probe;
mod publish;
mod quantity;
mod service;
mod shares;
mod time;
mod token;
mod volume;
mod workload;

pub use baremetal::{BareMetal, BareMetalSpec};
pub use container::{Container, ContainerSpec, Volume as Directory};
pub use elastic::{ElasticAddress, ElasticSpec, ElasticStatus, Target};
pub use event::{Event, EventBody, ObjectReference};
pub use fields::{FieldError, Fields};
pub use firstboot::FirstBoot;
pub use host::{Host, HostSpec, HostStatus, Taint};
pub use kind::{Cell, Column, GROUP, KINDS, Kind, Parts, Resource, VERSION, kind_of, named};
pub use meta::{
    Condition, FOREGROUND, ManagedFields, Meta, ORPHAN, Object, OwnerReference, is_label_value,
    is_name, typed, untyped,
};
use microvm::is_image;
pub use microvm::{Boot, Disk, DiskFormat, MicroVM, MicroVmSpec, Port, SEED};
pub use namespace::{Amounts, Namespace, NamespaceSpec, NamespaceStatus};
pub use network::{Bandwidth, NETWORK, Network, NetworkSpec, NetworkStatus};
pub use probe::{ExecAction, HttpAction, Probe, TcpAction, VsockAction};
pub use publish::{Protocol, Published, PublishedError};
pub use quantity::Quantity;
pub use service::{Endpoint, HealthCheck, Service, ServicePort, ServiceSpec, ServiceStatus};
pub use shares::{MOST_SHARES, Share};
pub use time::{Timestamp, age};
pub use token::{Token, TokenSpec, TokenStatus, duration};
pub use volume::{
    SnapshotPhase, Volume, VolumePhase, VolumeSnapshot, VolumeSnapshotSpec, VolumeSnapshotStatus,
    VolumeSource, VolumeSpec, VolumeStatus,
};
pub(crate) use workload::workload_columns;
pub use workload::{
    AGENT, MOST, Phase, Placement, Priority, RestartPolicy, Tier, Toleration, WorkloadStatus,
};
