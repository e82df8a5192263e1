//! Traces as they are, and as they should not be.

use proptest::prelude::*;

use super::*;

const TYPES_CSV: &str = "id,vmTypeId,machineId,core,memory,hdd,ssd,nic
0,5,1,0.25,0.5,0,0.1,0.05
1,5,2,0.5,0.5,0,,
2,6,1,0.125,0.0625,0,0.01,0
";

/// Reads two tables.
fn read(vms: &[u8], types: &[u8], machine: Option<u64>) -> Result<Trace, TraceError> {
    let folder = tempfile::tempdir().unwrap();
    let (vm, size) = (
        folder.path().join("vm.csv"),
        folder.path().join("types.csv"),
    );
    std::fs::write(&vm, vms).unwrap();
    std::fs::write(&size, types).unwrap();
    Trace::read(&vm, &size, machine)
}

fn said(vms: &str, types: &str) -> String {
    let error = read(vms.as_bytes(), types.as_bytes(), None)
        .unwrap_err()
        .to_string();
    error.rsplit('/').next().unwrap_or_default().to_owned()
}

#[test]
fn columns_are_found_by_name_and_arrivals_come_in_order() {
    let vms = "\"vmId\",vmTypeId,tenantId,starttime,endtime,priority
8,6,1,2.5,NULL,1
7,5,1,-0.5,0.25,0
";
    let trace = read(vms.as_bytes(), TYPES_CSV.as_bytes(), None).unwrap();
    assert_eq!(trace.types.len(), 2);
    assert_eq!((trace.types[0].core, trace.types[0].nic), (0.25, 0.05));
    let first = &trace.arrivals[0];
    assert_eq!(
        (first.id, first.start, first.end, first.low),
        (7, -0.5, Some(0.25), false)
    );
    let second = &trace.arrivals[1];
    assert_eq!(
        (second.id, second.size, second.end, second.low),
        (8, 1, None, true)
    );
    let other = read(vms.as_bytes(), TYPES_CSV.as_bytes(), Some(2)).unwrap();
    assert_eq!(
        (other.types[0].core, other.arrivals.len(), other.skipped),
        (0.5, 1, 1)
    );
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let header = "vmId,tenantId,vmTypeId,priority,starttime,endtime\n";
    let vm = |row: &str| said(&format!("{header}{row}\n"), TYPES_CSV);
    assert!(
        said("vmId,tenantId\n", TYPES_CSV).contains("vm.csv, line 1: there is no column vmTypeId")
    );
    assert!(vm("1,1,9,0,0,1").contains("vm.csv, line 2: vmTypeId 9 is not in the table"));
    assert!(vm("1,1,5,0,0").contains("line 2: it has 5 cells"));
    assert!(vm("1,1,5,0,2,1").contains("it ends before it starts"));
    assert!(vm("1,1,5,0,,1").contains("there is no starttime"));
    assert!(vm("1,1,5,0,NaN,1").contains("starttime is \"NaN\""));
    assert!(vm("-1,1,5,0,0,1").contains("vmId is \"-1\": it must be a whole number"));
    let row = format!("{header}1,1,5,0,0,1\n");
    let types = TYPES_CSV.replace("0.25", "1.5");
    assert!(
        said(&row, &types).contains("types.csv, line 2: core is \"1.5\": it must be a fraction")
    );
    assert!(said(&row, "").contains("types.csv, line 1: there is no column vmTypeId"));
    assert!(read(&vec![b'x'; 1 << 16], TYPES_CSV.as_bytes(), None).is_err());
    assert!(read(&[0xff, 0xfe, 0], TYPES_CSV.as_bytes(), None).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_a_trace_or_refused(
        vms in prop::collection::vec(any::<u8>(), 0..300),
        rows in "([0-9,.\\-e\"]{0,20}\n){0,8}",
    ) {
        let _ = read(&vms, TYPES_CSV.as_bytes(), None);
        let text = format!("vmId,tenantId,vmTypeId,priority,starttime,endtime\n{rows}");
        let _ = read(text.as_bytes(), TYPES_CSV.as_bytes(), None);
        let text = format!("vmTypeId,machineId,core,memory,hdd,ssd,nic\n{rows}");
        let _ = read(b"vmId,tenantId,vmTypeId,priority,starttime,endtime\n", text.as_bytes(), None);
    }
}
