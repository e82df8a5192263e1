//! What may come out of a back end's pipe, or not go into it.

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

#[test]
fn state_comes_whole_however_slowly() {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let state: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let sent = state.clone();
    let writer = std::thread::spawn(move || {
        let mut pipe = File::from(theirs);
        for part in sent.chunks(100_000) {
            std::thread::sleep(Duration::from_millis(5));
            pipe.write_all(part).unwrap();
        }
    });
    let read = read_all(ours, MOST, Instant::now() + PATIENCE).unwrap();
    assert!(read == state);
    writer.join().unwrap();
}

#[test]
fn state_goes_whole_and_whoever_stops_reading_is_noticed() {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let state: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        File::from(theirs).read_to_end(&mut read).unwrap();
        read
    });
    write_all(ours, &state, Instant::now() + PATIENCE).unwrap();
    assert!(reader.join().unwrap() == state);
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    drop(theirs);
    let error = write_all(ours, &state, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_pipe_that_stays_as_it_is_ends_the_wait() {
    let (ours, _theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let error = read_all(ours, MOST, soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let (_theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let error = write_all(ours, &[0; 1 << 20], soon()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn state_without_an_end_is_not_taken() {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let writer = std::thread::spawn(move || {
        let mut pipe = File::from(theirs);
        while pipe.write_all(&[1; 4096]).is_ok() {}
    });
    let error = read_all(ours, 1 << 20, Instant::now() + PATIENCE).unwrap_err();
    assert!(
        error.to_string().contains("more than 1048576 bytes"),
        "{error}"
    );
    writer.join().unwrap();
}
