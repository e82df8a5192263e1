//! A trace as two files, in the form in which one is read.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::trace::{Trace, TraceError};
use crate::schedule::Tier;

/// Writes `vm.csv` and `types.csv` into a directory that is there.
pub fn save(trace: &Trace, directory: &Path) -> Result<(), TraceError> {
    written(directory, "types.csv", |file| {
        writeln!(file, "id,vmTypeId,machineId,core,memory,hdd,ssd,nic,tier")?;
        for (i, size) in trace.types.iter().enumerate() {
            let tier = match size.tier {
                Tier::Dedicated => "dedicated",
                Tier::Burst => "burst",
                Tier::Dense => "dense",
            };
            writeln!(
                file,
                "{i},{},0,{},{},{},{},{},{tier}",
                size.id,
                digits(size.core),
                digits(size.memory),
                digits(size.hdd),
                digits(size.ssd),
                digits(size.nic)
            )?;
        }
        Ok(())
    })?;
    written(directory, "vm.csv", |file| {
        writeln!(file, "vmId,tenantId,vmTypeId,priority,starttime,endtime")?;
        for arrival in &trace.arrivals {
            // A type that is an index of the table.
            let size = trace.types.get(arrival.size).map_or(0, |size| size.id);
            let (low, start) = (u8::from(arrival.low), digits(arrival.start));
            let end = arrival.end.map(digits).unwrap_or_default();
            writeln!(
                file,
                "{},{},{size},{low},{start},{end}",
                arrival.id, arrival.tenant
            )?;
        }
        Ok(())
    })
}

/// Six digits after the point at most: a tenth of a second, or a millionth of a machine.
fn digits(number: f64) -> String {
    let text = format!("{number:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn written(
    directory: &Path,
    name: &str,
    content: impl Fn(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), TraceError> {
    let path = directory.join(name);
    let write = || {
        let mut file = BufWriter::new(File::create(&path)?);
        content(&mut file)?;
        file.flush()
    };
    write().map_err(|source| TraceError::Write {
        path: path.clone(),
        source,
    })
}
