use super::*;

/// Memory and stack are watched by the allocator of the test program.
#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

const LIMITS: Limits =
    Limits { memory: 64 << 20, stack: 16 << 20, time: Duration::from_millis(300) };

#[test]
fn a_result_comes_back() {
    assert_eq!(run(LIMITS, || vec![7; 3]), Ok(vec![7; 3]));
}

#[test]
fn panics_come_back_with_their_message() {
    let number = 3;
    assert_eq!(
        run(LIMITS, move || panic!("no {number}")),
        Err::<(), _>(Fault::Panic("no 3".into()))
    );
    assert_eq!(catch(|| panic!("here")), Err::<(), _>(Fault::Panic("here".into())));
    assert_eq!(catch(|| 5), Ok(5));
}

#[test]
fn memory_is_bounded_in_pieces_and_at_once() {
    let pieces = || (0..1000).map(|_| vec![1u8; 1 << 20]).collect::<Vec<_>>().len();
    assert_eq!(run(LIMITS, pieces), Err(Fault::Memory(64 << 20)));
    let at_once = || vec![1u8; 1 << 40].len();
    assert_eq!(run(LIMITS, at_once), Err(Fault::Memory(64 << 20)));
    let growing = || {
        let mut text = "a".to_owned();
        for _ in 0..40 {
            text = text.clone() + &text;
        }
        text.len()
    };
    assert_eq!(run(LIMITS, growing), Err(Fault::Memory(64 << 20)));
}

#[test]
fn what_is_given_back_may_be_used_again() {
    let reused = || (0..1000).map(|i| vec![i as u8; 1 << 20].len()).sum::<usize>();
    assert_eq!(run(LIMITS, reused), Ok(1000 << 20));
}

#[test]
fn recursion_without_end_is_stopped() {
    fn deeper(level: u64) -> u64 {
        let boxed = Box::new(level);
        if *boxed == u64::MAX { 0 } else { 1 + deeper(std::hint::black_box(*boxed + 1)) }
    }
    assert_eq!(run(LIMITS, || deeper(0)), Err(Fault::Stack));
}

#[test]
fn work_without_end_is_stopped() {
    let endless = || {
        let mut n = 0u64;
        while std::hint::black_box(n) != u64::MAX {
            n += 1;
        }
        n
    };
    assert_eq!(run(LIMITS, endless), Err(Fault::Time(LIMITS.time)));
}
