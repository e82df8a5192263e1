//! The API's table of contents. The server routes by it and the OpenAPI document is made of it,
//! so that neither knows an endpoint that the other does not.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::config::{DiskConfig, NetConfig, VmConfig};
use crate::requests::{
    DiskInfo, DiskJobInfo, DiskSnapshotInfo, ErrorBody, VmCounters, VmDiskBackup, VmDiskBitmap,
    VmDiskCancel, VmDiskCommit, VmDiskSnapshot, VmDiskStream, VmInfo, VmRemoveDevice, VmResizeDisk,
    VmUsage, VmmPingResponse,
};
use crate::snapshots::{
    VmMigrationInfo, VmPrepare, VmReceiveMigration, VmRestore, VmRestoreInfo, VmSendMigration,
    VmSnapshot, VmSnapshotInfo, VmWorkingSetInfo,
};
use crate::workers::{VmMoveQueues, VmSetWorker, WorkerInfo};

/// Where the API's paths begin.
pub const ROOT: &str = "/api/v1";

/// An endpoint's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Operation {
    VmmPing,
    VmmShutdown,
    VmCreate,
    VmDelete,
    VmBoot,
    VmInfo,
    VmCounters,
    VmUsage,
    VmPause,
    VmResume,
    VmShutdown,
    VmReboot,
    VmPowerButton,
    VmAddDisk,
    VmAddNet,
    VmRemoveDevice,
    VmResizeDisk,
    VmDisks,
    VmDiskSnapshot,
    VmDiskCommit,
    VmDiskStream,
    VmDiskBackup,
    VmDiskJobs,
    VmDiskCancel,
    VmDiskBitmapAdd,
    VmDiskBitmapClear,
    VmDiskBitmapRemove,
    VmWorkers,
    VmMoveQueues,
    VmSetWorker,
    VmSnapshot,
    VmRestore,
    VmPrepare,
    VmSendMigration,
    VmReceiveMigration,
    VmCancelMigration,
    VmWorkingSet,
    OpenApi,
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One endpoint.
pub struct Endpoint {
    /// Its name.
    pub operation: Operation,
    /// GET or PUT.
    pub method: &'static str,
    /// Its path, without [`ROOT`].
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The request's body.
    request: Option<SchemaOf>,
    /// The answer's body (200); without one, the answer is 204.
    answer: Option<SchemaOf>,
    /// Why it may be refused, by status.
    refusals: &'static [(u16, &'static str)],
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const BAD: (u16, &str) = (
    400,
    "The request is malformed or names something that cannot be.",
);
const NO_VM: (u16, &str) = (404, "No VM was created.");
const STATE: (u16, &str) = (405, "The VM is not in a state that allows this.");
const FAILED: (u16, &str) = (500, "The host refused.");
const BUSY: (u16, &str) = (409, "Other work on the disk is under way.");
const NO_DISK: (u16, &str) = (404, "No VM, or no such disk.");

const fn put(
    operation: Operation,
    path: &'static str,
    summary: &'static str,
    refusals: &'static [(u16, &'static str)],
) -> Endpoint {
    Endpoint {
        operation,
        method: "PUT",
        path,
        summary,
        request: None,
        answer: None,
        refusals,
    }
}

const fn get(
    operation: Operation,
    path: &'static str,
    summary: &'static str,
    answer: SchemaOf,
    refusals: &'static [(u16, &'static str)],
) -> Endpoint {
    Endpoint {
        operation,
        method: "GET",
        path,
        summary,
        request: None,
        answer: Some(answer),
        refusals,
    }
}

impl Endpoint {
    const fn takes(mut self, request: SchemaOf) -> Endpoint {
        self.request = Some(request);
        self
    }

    const fn answers(mut self, answer: SchemaOf) -> Endpoint {
        self.answer = Some(answer);
        self
    }
}

/// All endpoints.
pub const ENDPOINTS: &[Endpoint] = &[
    get(
        Operation::VmmPing,
        "/vmm.ping",
        "Say that the monitor is there, and its version",
        schema::<VmmPingResponse>,
        &[],
    ),
    put(
        Operation::VmmShutdown,
        "/vmm.shutdown",
        "Stop the VM, if there is one, and end the monitor",
        &[],
    ),
    put(
        Operation::VmCreate,
        "/vm.create",
        "Configure a VM; it is not booted",
        &[BAD, (409, "A VM exists already.")],
    )
    .takes(schema::<VmConfig>),
    put(
        Operation::VmDelete,
        "/vm.delete",
        "Stop the VM and forget it",
        &[NO_VM],
    ),
    put(
        Operation::VmBoot,
        "/vm.boot",
        "Start the VM",
        &[BAD, NO_VM, STATE, FAILED],
    ),
    get(
        Operation::VmInfo,
        "/vm.info",
        "The VM's configuration and state",
        schema::<VmInfo>,
        &[NO_VM],
    ),
    get(
        Operation::VmCounters,
        "/vm.counters",
        "What the VM's devices counted",
        schema::<VmCounters>,
        &[NO_VM, STATE],
    ),
    get(
        Operation::VmUsage,
        "/vm.usage",
        "What devices counted, how often CPUs left the guest and why, and what workers do",
        schema::<VmUsage>,
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmPause,
        "/vm.pause",
        "Stop the VM's CPUs and queues where they are",
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmResume,
        "/vm.resume",
        "Go on after a pause",
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmShutdown,
        "/vm.shutdown",
        "Stop the VM, without asking the guest",
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmReboot,
        "/vm.reboot",
        "Stop the VM and start it again",
        &[NO_VM, STATE, FAILED],
    ),
    put(
        Operation::VmPowerButton,
        "/vm.power-button",
        "Press the VM's power button",
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmAddDisk,
        "/vm.add-disk",
        "Add a disk, also to a VM that runs: then its place is answered",
        &[
            BAD,
            NO_VM,
            STATE,
            (
                409,
                "The name is taken, or a snapshot or migration is under way.",
            ),
            FAILED,
        ],
    )
    .takes(schema::<DiskConfig>),
    put(
        Operation::VmAddNet,
        "/vm.add-net",
        "Add a network device to a VM that was not booted yet",
        &[BAD, NO_VM, STATE, (409, "The name is taken.")],
    )
    .takes(schema::<NetConfig>),
    put(
        Operation::VmRemoveDevice,
        "/vm.remove-device",
        "Remove a device; the guest of a VM that runs is asked to give a disk back",
        &[BAD, (404, "No VM, or no such device."), STATE, BUSY],
    )
    .takes(schema::<VmRemoveDevice>),
    put(
        Operation::VmResizeDisk,
        "/vm.resize-disk",
        "Change a disk's size while the guest runs",
        &[BAD, NO_DISK, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmResizeDisk>),
    get(
        Operation::VmDisks,
        "/vm.disks",
        "The disks of the running VM, with their layers and bitmaps",
        schema::<Vec<DiskInfo>>,
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmDiskSnapshot,
        "/vm.disk-snapshot",
        "Put a new layer on top of a disk: what is below stays as it is",
        &[BAD, NO_DISK, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmDiskSnapshot>)
    .answers(schema::<DiskSnapshotInfo>),
    put(
        Operation::VmDiskCommit,
        "/vm.disk-commit",
        "Begin to merge a disk's layer into the one below it",
        &[BAD, NO_DISK, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmDiskCommit>)
    .answers(schema::<DiskJobInfo>),
    put(
        Operation::VmDiskStream,
        "/vm.disk-stream",
        "Begin to draw a disk's layers up into the top one",
        &[BAD, NO_DISK, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmDiskStream>)
    .answers(schema::<DiskJobInfo>),
    put(
        Operation::VmDiskBackup,
        "/vm.disk-backup",
        "Begin to copy a disk as it is now, or what a bitmap says was written",
        &[BAD, NO_DISK, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmDiskBackup>)
    .answers(schema::<DiskJobInfo>),
    get(
        Operation::VmDiskJobs,
        "/vm.disk-jobs",
        "Long work on disks, also what ended",
        schema::<Vec<DiskJobInfo>>,
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmDiskCancel,
        "/vm.disk-cancel",
        "End a disk's job early; the disk is as it was before",
        &[BAD, (404, "No VM, or no such job."), STATE],
    )
    .takes(schema::<VmDiskCancel>),
    put(
        Operation::VmDiskBitmapAdd,
        "/vm.disk-bitmap-add",
        "Begin to note in a bitmap what is written to a disk",
        &[BAD, NO_DISK, STATE, (409, "The name is taken."), FAILED],
    )
    .takes(schema::<VmDiskBitmap>),
    put(
        Operation::VmDiskBitmapClear,
        "/vm.disk-bitmap-clear",
        "Forget what a bitmap has noted",
        &[BAD, (404, "No VM, disk or bitmap of that name."), STATE],
    )
    .takes(schema::<VmDiskBitmap>),
    put(
        Operation::VmDiskBitmapRemove,
        "/vm.disk-bitmap-remove",
        "Remove a bitmap",
        &[BAD, (404, "No VM, disk or bitmap of that name."), STATE],
    )
    .takes(schema::<VmDiskBitmap>),
    get(
        Operation::VmWorkers,
        "/vm.workers",
        "The I/O workers of the running VM, and what each serves",
        schema::<Vec<WorkerInfo>>,
        &[NO_VM, STATE],
    ),
    put(
        Operation::VmMoveQueues,
        "/vm.move-queues",
        "Let another I/O worker serve a device's queues, while the guest runs",
        &[BAD, (404, "No VM, or no such device or worker."), STATE],
    )
    .takes(schema::<VmMoveQueues>),
    put(
        Operation::VmSetWorker,
        "/vm.set-worker",
        "Change how long an I/O worker looks for work by itself",
        &[BAD, (404, "No VM, or no such worker."), STATE],
    )
    .takes(schema::<VmSetWorker>),
    put(
        Operation::VmSnapshot,
        "/vm.snapshot",
        "Keep memory, devices and disks as they are at one moment",
        &[BAD, NO_VM, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmSnapshot>)
    .answers(schema::<VmSnapshotInfo>),
    put(
        Operation::VmRestore,
        "/vm.restore",
        "Make a VM of a snapshot, or find out what stands in the way",
        &[BAD, (409, "A VM exists already."), FAILED],
    )
    .takes(schema::<VmRestore>)
    .answers(schema::<VmRestoreInfo>),
    put(
        Operation::VmPrepare,
        "/vm.prepare",
        "Make a VM ready for what will run in it",
        &[BAD, (409, "A VM exists already."), FAILED],
    )
    .takes(schema::<VmPrepare>),
    put(
        Operation::VmWorkingSet,
        "/vm.working-set",
        "Record what a restored guest has touched, for later restores to fetch at once",
        &[BAD, NO_VM, STATE, FAILED],
    )
    .answers(schema::<VmWorkingSetInfo>),
    put(
        Operation::VmSendMigration,
        "/vm.send-migration",
        "Let the VM go on in another monitor",
        &[BAD, NO_VM, STATE, BUSY, FAILED],
    )
    .takes(schema::<VmSendMigration>)
    .answers(schema::<VmMigrationInfo>),
    put(
        Operation::VmReceiveMigration,
        "/vm.receive-migration",
        "Wait for a VM and let it go on here",
        &[BAD, (409, "A VM exists already."), FAILED],
    )
    .takes(schema::<VmReceiveMigration>),
    put(
        Operation::VmCancelMigration,
        "/vm.cancel-migration",
        "Let the VM stay where it is, or wait for none any more",
        &[NO_VM, STATE, BUSY],
    ),
    get(
        Operation::OpenApi,
        "/openapi.json",
        "This document",
        schema::<Map<String, Value>>,
        &[],
    ),
];

/// The OpenAPI 3.0 document of [`ENDPOINTS`].
pub fn openapi() -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let error = schema::<ErrorBody>(&mut generator);
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let mut responses = Map::new();
        match endpoint.answer {
            Some(answer) => {
                let schema = answer(&mut generator);
                responses.insert("200".into(), json!({ "description": "Done.", "content": { "application/json": { "schema": schema } } }));
            }
            None => drop(responses.insert("204".into(), json!({ "description": "Done." }))),
        }
        for (status, why) in endpoint.refusals {
            let body = json!({ "description": why, "content": { "application/json": { "schema": error } } });
            responses.insert(status.to_string(), body);
        }
        let mut operation = json!({
            "operationId": format!("{:?}", endpoint.operation),
            "summary": endpoint.summary,
            "responses": responses,
        });
        if let Some(request) = endpoint.request {
            let schema = request(&mut generator);
            operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        paths.insert(
            endpoint.path.into(),
            json!({ endpoint.method.to_lowercase(): operation }),
        );
    }
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "skerry-vmm",
            "description": "One microVM: Cloud Hypervisor's v1 API, as far as skerry-vmm serves it. Refusals answer with the error and each of its causes.",
            "license": { "name": "Apache-2.0" },
            "version": env!("CARGO_PKG_VERSION"),
        },
        "servers": [{ "url": format!("http://localhost{ROOT}") }],
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document = openapi();
        let text = document.to_string();
        let references: Vec<_> = text
            .split("\"$ref\":\"")
            .skip(1)
            .filter_map(|t| t.split('"').next())
            .collect();
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        assert!(
            document
                .pointer("/components/schemas/VmConfig/properties/disks")
                .is_some()
        );
    }

    #[test]
    fn paths_are_unique() {
        let mut paths: Vec<_> = ENDPOINTS.iter().map(|e| e.path).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), ENDPOINTS.len());
    }
}
