//! A few threads that wait for short, equal jobs.
//!
//! A decode step has some 150 parallel regions of a few microseconds each. Waking a sleeping
//! thread costs more than such a region, so workers spin for a moment after each job and sleep
//! only when the stream pauses. A general work-stealing pool (rayon) sleeps and wakes per job;
//! that is why this small one exists.
//!
//! Nobody is waited for who has not begun: a worker *joins* a job while it is open, the caller
//! closes it when no task is left, and waits for those who joined. So a thread that the system has
//! put aside in favour of another program delays a job only while it holds a task of it.
//!
//! Each thread has a part of the tasks, consecutive ones, and begins there; when it is done it takes
//! those that others have not begun. So a thread reads the weights of its part as one stream. (With
//! one counter for all, each of two threads reads every other piece, and its prefetchers start
//! anew with each: a third slower for small matrices.)

use std::cell::UnsafeCell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Spins before a worker sleeps: a fraction of a millisecond.
const SPINS: u32 = 10_000;

/// A job as workers see it: a function of the task's number, and how many tasks there are.
#[derive(Clone, Copy)]
struct Job {
    call: *const (dyn Fn(usize, usize) + Sync),
    n_tasks: usize,
}

/// On a cache line of its own: one thread's writes do not slow the reads of another's neighbour.
#[repr(align(64))]
struct Line<T>(T);

/// Says that workers may join the newest job; the bits below count those who have.
const OPEN: u64 = 1 << 31;

/// What the caller and the workers share.
struct Shared {
    /// Number of the newest job, in the upper 32 bits; [`OPEN`]; how many workers joined it.
    gate: Line<AtomicU64>,
    /// The next task to take of each thread's part.
    next: Box<[Line<AtomicUsize>]>,
    /// Workers that joined the newest job and are done with it.
    finished: Line<AtomicUsize>,
    /// The newest job. Written by the caller while the gate is closed and all who had joined are
    /// done; read by those who have joined.
    job: UnsafeCell<Job>,
    /// Spins before a worker sleeps: none if there are more threads than cores.
    spins: u32,
    /// Workers asleep, or about to.
    n_asleep: AtomicUsize,
    /// Guards falling asleep against waking up.
    sleep: Mutex<()>,
    wake: Condvar,
    /// A task panicked; the caller panics in turn.
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is the only part that is not `Sync` and `Send` by itself. Its rule, stated there,
// is kept by `Pool::run` and `Shared::work`; the function behind its pointer is `Sync` and is used
// only while `Pool::run` waits.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A pool of threads that run the tasks of one job at a time; the calling thread works too.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: a second caller waits.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.n_threads())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Panics inside tasks are caught, so a poisoned lock still guards consistent data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `n_threads`, the caller's included.
    ///
    /// # Errors
    ///
    /// What the system says if it refuses a thread.
    pub fn new(n_threads: NonZeroUsize) -> std::io::Result<Self> {
        let n_cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let nothing: &'static (dyn Fn(usize, usize) + Sync) = &|_, _| {};
        let shared = Arc::new(Shared {
            gate: Line(AtomicU64::new(0)),
            next: (0..n_threads.get()).map(|_| Line(AtomicUsize::new(0))).collect(),
            finished: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { call: nothing, n_tasks: 0 }),
            spins: if n_threads.get() > n_cores { 0 } else { SPINS },
            n_asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for worker in 1..n_threads.get() {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("everstream-{worker}"));
            // If one is refused, dropping the pool ends those before it.
            pool.workers.push(thread.spawn(move || shared.work(worker))?);
        }
        Ok(pool)
    }

    /// Threads that work on a job.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread, i)` once for each `i` below `n_tasks`, on all threads; returns when all
    /// are done. `thread` is below [`Pool::n_threads`] and differs between tasks that run at once.
    /// A task must not use the pool itself: it would wait for its own end.
    ///
    /// # Panics
    ///
    /// If a task panics, after all have stopped.
    pub(crate) fn run(&self, n_tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || n_tasks <= 1 {
            return (0..n_tasks).for_each(|i| task(0, i));
        }
        let _turn = lock(&self.turn);
        // SAFETY: only the lifetime changes. The reference is dead before this function returns,
        // since it waits until no worker is active on the job.
        let call = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(task)
        };
        let job = Job { call, n_tasks };
        let shared = &*self.shared;
        // SAFETY: the gate is closed since the last job, and everyone who had joined it is done.
        unsafe { *shared.job.get() = job };
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(shared.part(thread, n_tasks), Ordering::Relaxed);
        }
        shared.finished.0.store(0, Ordering::Relaxed);
        // Only the caller changes the number, and `turn` is held.
        let number = (shared.gate.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.gate.0.store(number << 32 | OPEN, Ordering::SeqCst);
        if shared.n_asleep.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        shared.take_tasks(job, 0);
        let joined = shared.gate.0.fetch_and(!OPEN, Ordering::AcqRel) & (OPEN - 1);
        let mut spins = 0;
        while (shared.finished.0.load(Ordering::Acquire) as u64) < joined {
            spin(&mut spins);
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a parallel task panicked");
        }
    }

    /// Calls `f(i, chunk)` for the `i`-th chunk of `chunk_len` elements of `data`, in parallel; the
    /// last chunk may be shorter.
    ///
    /// # Panics
    ///
    /// If `chunk_len` is 0 and `data` is not empty, or if `f` panics.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let mut nothing = vec![(); self.n_threads()];
        self.for_each_chunk_with(data, chunk_len, &mut nothing, |(), i, chunk| f(i, chunk));
    }

    /// As [`Pool::for_each_chunk`], with a scratch value for each thread.
    ///
    /// # Panics
    ///
    /// Also if there are fewer scratch values than threads.
    pub fn for_each_chunk_with<T: Send, S: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        scratch: &mut [S],
        f: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        if data.is_empty() {
            return;
        }
        assert!(chunk_len > 0, "chunks of no elements");
        assert!(scratch.len() >= self.n_threads(), "a scratch value for each thread");
        let len = data.len();
        let (data, scratch) = (Shareable(data.as_mut_ptr()), Shareable(scratch.as_mut_ptr()));
        self.run(len.div_ceil(chunk_len), &|thread, i| {
            let first = i * chunk_len;
            // SAFETY: chunk `i` lies inside the slice and overlaps no other chunk; each number is
            // handed out once.
            let chunk = unsafe {
                std::slice::from_raw_parts_mut(data.get().add(first), chunk_len.min(len - first))
            };
            // SAFETY: `thread` is below the number of scratch values, and no other task that runs
            // at the same time has the same number.
            let scratch = unsafe { &mut *scratch.get().add(thread) };
            f(scratch, i, chunk);
        });
    }
}

/// A pointer to data that the tasks of a job divide among themselves.
pub(crate) struct Shareable<T>(pub(crate) *mut T);

// SAFETY: whoever shares it (`Pool::for_each_chunk_with`, `matmul`) gives each element to one task
// at a time, and `T: Send`.
unsafe impl<T: Send> Sync for Shareable<T> {}

impl<T> Shareable<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

/// Waits a moment; gives the core away after a while, in case the other thread needs it.
fn spin(spins: &mut u32) {
    *spins += 1;
    if *spins > SPINS {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Shared {
    /// The first task of a thread's part.
    fn part(&self, thread: usize, n_tasks: usize) -> usize {
        (thread * n_tasks).div_ceil(self.next.len())
    }

    /// Runs tasks until none is left: those of the thread's own part, then of the others'.
    fn take_tasks(&self, job: Job, thread: usize) {
        let n_threads = self.next.len();
        let result = catch_unwind(AssertUnwindSafe(|| {
            for part in (thread..n_threads).chain(0..thread) {
                let end = self.part(part + 1, job.n_tasks);
                // Looking is cheaper than taking where many threads look and nothing is left.
                while self.next[part].0.load(Ordering::Relaxed) < end {
                    let i = self.next[part].0.fetch_add(1, Ordering::Relaxed);
                    if i >= end {
                        break;
                    }
                    // SAFETY: `Pool::run` keeps the function alive until all who joined are done.
                    unsafe { (*job.call)(thread, i) };
                }
            }
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// The loop of a worker thread.
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.join(seen) {
                // SAFETY: who has joined may read the job until it says that it is done.
                let job = unsafe { *self.job.get() };
                self.take_tasks(job, thread);
                self.finished.0.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Joins job `number`, if it is still open.
    fn join(&self, number: u64) -> bool {
        let mut gate = self.gate.0.load(Ordering::Acquire);
        while gate >> 32 == number && gate & OPEN != 0 {
            let joined = gate + 1;
            match self.gate.0.compare_exchange(gate, joined, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }

    /// Returns the number of a newer job than `seen`, or anything when the pool stops.
    fn wait_for_job(&self, seen: u64) -> u64 {
        let number = || self.gate.0.load(Ordering::SeqCst) >> 32;
        let ready = || number() != seen || self.stop.load(Ordering::SeqCst);
        for _ in 0..self.spins {
            if ready() {
                return number();
            }
            std::hint::spin_loop();
        }
        let mut sleep = lock(&self.sleep);
        // Announced before it looks again: a caller that opens a job from now on sees it, and
        // cannot wake anyone before the lock is given up.
        self.n_asleep.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.n_asleep.fetch_sub(1, Ordering::SeqCst);
        number()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so it can only have ended normally.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_visited_once() {
        for n_threads in [1, 2, 3, 5] {
            let pool = Pool::new(NonZeroUsize::new(n_threads).unwrap()).unwrap();
            for len in [0, 1, 2, 7, 64, 1000] {
                for chunk in [1, 3, 64] {
                    let mut data = vec![0u32; len];
                    pool.for_each_chunk(&mut data, chunk, |i, c| {
                        c.iter_mut().for_each(|x| *x += 1 + i as u32);
                    });
                    let expected: Vec<u32> = (0..len).map(|x| 1 + (x / chunk) as u32).collect();
                    assert_eq!(data, expected);
                }
            }
        }
    }

    #[test]
    fn many_short_jobs_after_pauses() {
        let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
        let mut data = vec![0u32; 8];
        for round in 0..3000 {
            if round % 1000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            pool.for_each_chunk(&mut data, 1, |_, c| c[0] += 1);
        }
        assert_eq!(data, vec![3000; 8]);
    }

    /// More threads than cores: most jobs are over before everyone has come.
    #[test]
    fn latecomers_miss_a_job_and_none_runs_twice() {
        let pool = Pool::new(NonZeroUsize::new(16).unwrap()).unwrap();
        let mut data = vec![0u32; 64];
        for round in 1..2000 {
            let n = 2 + round as usize % 62;
            pool.for_each_chunk(&mut data[..n], 1, |i, c| c[0] += 1 + i as u32);
            pool.for_each_chunk(&mut data[..n], 1, |i, c| c[0] -= 1 + i as u32);
            assert!(data.iter().all(|&x| x == 0), "round {round}");
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let mut data = vec![0u32; 20];
                        pool.for_each_chunk(&mut data, 3, |_, c| {
                            c.iter_mut().for_each(|x| *x += 1)
                        });
                        assert_eq!(data, [1; 20]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
        let mut data = vec![0u32; 16];
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each_chunk(&mut data, 1, |i, _| assert!(i != 3, "task 3"));
        }));
        assert!(result.is_err());
        pool.for_each_chunk(&mut data, 1, |_, c| c[0] = 9);
        assert_eq!(data, vec![9; 16]);
    }
}
