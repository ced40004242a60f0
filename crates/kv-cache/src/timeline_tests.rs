//! The timeline against a naive model: the whole stream as a list, and for each query the list of
//! what StreamingLLM's loop would hold, where the place in the list is the position.

use super::*;
use crate::{NeverEvict, SinkWindow};

/// What a row of a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Token(usize),
    /// Number of the recall, so that stale rows show, and of the token in it.
    Recalled(usize, usize),
    Cluster(usize),
}

/// The naive model.
#[derive(Clone, Debug)]
struct Stream {
    n_sink: usize,
    window: usize,
    n_tokens: usize,
    /// What is recalled, where, and how long the stream was then.
    recall: Option<(Place, usize, Vec<Item>)>,
    /// Tokens before this one are hidden from the next query.
    hidden_before: usize,
    /// The same for each token of the stream.
    hidden_of: Vec<usize>,
    /// Behind the sinks, if there are any, and the tokens that are added to them at once.
    clusters: Option<(usize, usize)>,
}

impl Stream {
    /// Segments that are in clusters when the query at `t` is made: whole ones of what has left.
    fn segments_at(&self, t: usize) -> usize {
        let n_left = t.saturating_sub(self.window + self.n_sink);
        self.clusters.map_or(0, |(_, segment)| n_left / segment)
    }

    /// Clusters at that time: a quarter of them begins with each of the first segments.
    fn clusters_at(&self, t: usize) -> usize {
        let (most, segment) = self.clusters.unwrap_or_default();
        most.min(self.segments_at(t) * most.div_ceil(4).min(segment.max(1)))
    }

    /// What the query at `t` sees, by places, in order; itself last. All clusters have one place, which is
    /// empty for who does not see the whole window.
    fn places_of(&self, t: usize) -> Vec<Vec<Item>> {
        let mut places: Vec<Vec<Item>> =
            self.cache_of(t).into_iter().map(|item| vec![item]).collect();
        let n_clusters = if t < self.n_sink { 0 } else { self.clusters_at(t) };
        if n_clusters > 0 {
            let sees_all = self.hidden_at(t) <= self.n_sink.max(t.saturating_sub(self.window));
            let n_seen = if sees_all { n_clusters } else { 0 };
            places.insert(self.n_sink, (0..n_seen).map(Item::Cluster).collect());
        }
        places
    }

    fn hidden_at(&self, t: usize) -> usize {
        self.hidden_of.get(t).copied().unwrap_or(self.hidden_before).min(t)
    }

    /// The same without clusters.
    fn cache_of(&self, t: usize) -> Vec<Item> {
        let hidden_before = self.hidden_of.get(t).copied().unwrap_or(self.hidden_before);
        let window = self.window_of(t).filter(|&p| p == t || p >= hidden_before);
        let (place, at, recalled) = match &self.recall {
            Some((place, at, items)) if t >= self.n_sink => (*place, *at, &items[..]),
            _ => (Place::Between, 0, &[][..]),
        };
        let (old, new): (Vec<_>, Vec<_>) = window.partition(|&p| place == Place::Near && p < at);
        let tokens = |list: Vec<usize>| list.into_iter().map(Item::Token);
        (0..self.n_sink.min(t + 1))
            .map(Item::Token)
            .chain(tokens(old))
            .chain(recalled.iter().copied())
            .chain(tokens(new))
            .collect()
    }

    /// The window of the query at `t`, whether hidden or not; itself last.
    fn window_of(&self, t: usize) -> impl Iterator<Item = usize> {
        self.n_sink.max(t.saturating_sub(self.window))..=t
    }

    /// Whether no token older than a recall `near` is in the window at `t`.
    fn window_has_passed(&self, t: usize) -> bool {
        self.recall.as_ref().is_some_and(|(place, at, _)| {
            *place == Place::Near && !self.window_of(t).any(|p| p < *at)
        })
    }
}

/// A timeline, the naive model, and what the buffers of a cache would hold.
#[derive(Clone)]
struct Run {
    timeline: Timeline,
    stream: Stream,
    /// By slot: whose key it is, and where it was rotated.
    rows: Vec<Option<(Item, RopePos)>>,
    n_recalls: usize,
    /// The recall still has its gap in the window.
    is_near: bool,
}

impl Run {
    fn new(policy: Arc<dyn EvictionPolicy>, recall_tokens: usize, chunk_tokens: usize) -> Self {
        let (n_sink, window) = (policy.n_sink(), policy.window_tokens());
        let timeline = Timeline::new(policy, recall_tokens, chunk_tokens).unwrap();
        let rows = vec![None; timeline.n_slots()];
        let stream = Stream {
            n_sink,
            window,
            n_tokens: 0,
            recall: None,
            hidden_before: 0,
            hidden_of: Vec::new(),
            clusters: None,
        };
        Self { timeline, stream, rows, n_recalls: 0, is_near: false }
    }

    fn sink(n_sink: usize, window_tokens: usize, recall: usize, chunk: usize) -> Self {
        Self::new(Arc::new(SinkWindow { n_sink, window_tokens }), recall, chunk)
    }

    fn with_clusters(mut self, n_clusters: usize, segment_tokens: usize) -> Self {
        let config = ClusterConfig { n_clusters, segment_tokens, ..Default::default() };
        self.timeline = self.timeline.with_clusters(Some(config));
        self.rows = vec![None; self.timeline.n_slots()];
        self.stream.clusters = Some((n_clusters, segment_tokens));
        self
    }

    /// As [`crate::KvCache`] does before it plans.
    fn settle_clusters(&mut self) {
        let Some(due) = self.timeline.due_for_clusters() else { return };
        let held = self.timeline.held();
        assert!(held.start <= due.start && due.end <= held.end, "{due:?} of {held:?}");
        let n_clusters = self.stream.clusters_at(self.len());
        self.timeline.clustered(n_clusters);
        assert!(self.timeline.due_for_clusters().is_none());
        for i in 0..n_clusters {
            let slot = self.timeline.cluster_slot(i).0 as usize;
            self.rows[slot] = Some((Item::Cluster(i), self.timeline.cluster_pos(i)));
        }
        self.rotate_recalled();
    }

    fn len(&self) -> usize {
        self.stream.n_tokens
    }

    /// As [`crate::KvCache`] does it: move if due, plan, fill all rows, look, commit.
    fn append(&mut self, n_tokens: usize) -> Vec<RowPlan> {
        self.append_with(n_tokens, &[])
    }

    fn append_with(&mut self, n_tokens: usize, starts: &[usize]) -> Vec<RowPlan> {
        self.settle_clusters();
        let passed = self.is_near && self.stream.window_has_passed(self.len());
        assert_eq!(self.timeline.is_move_due(), passed, "{self:?}");
        if passed {
            self.timeline.move_between();
            self.rotate_recalled();
            self.is_near = false;
        }
        let mut plan = Vec::new();
        let positions: Vec<_> = starts.iter().map(|&start| TokenPos(start as u64)).collect();
        self.timeline.plan(n_tokens, &positions, &mut plan).unwrap();
        assert_eq!(plan.len(), n_tokens);
        for row in &plan {
            let item = Item::Token(row.token.0 as usize);
            self.rows[row.slot.0 as usize] = Some((item, row.window_pos));
            if let Some(&start) = starts.iter().find(|&&start| start as u64 == row.token.0) {
                self.stream.hidden_before = start;
            }
            self.stream.hidden_of.push(self.stream.hidden_before);
        }
        plan.iter().for_each(|row| self.check_row(row));
        self.timeline.advance(n_tokens);
        if let Some(&start) = positions.last() {
            self.timeline.hide_before(start);
        }
        self.stream.n_tokens += n_tokens;
        self.check_state();
        plan
    }

    /// Appends in chunks as long as the timeline takes.
    fn append_all(&mut self, mut n_tokens: usize) {
        while n_tokens > 0 {
            let n = self.timeline.next_chunk(n_tokens);
            assert_eq!(n, self.longest_chunk(n_tokens), "{self:?}");
            self.append(n);
            n_tokens -= n;
        }
    }

    /// Where a chunk must be cut: before the first query, but for the next, that moves a recall.
    fn longest_chunk(&self, n_tokens: usize) -> usize {
        let limit = n_tokens.min(self.timeline.chunk_tokens());
        let moves = |i: &usize| self.is_near && self.stream.window_has_passed(self.len() + i);
        let segments_after = |i: &usize| self.stream.segments_at(self.len() + i);
        let adds = |i: &usize| segments_after(i) > segments_after(&0);
        (1..limit).find(|i| moves(i) || adds(i)).unwrap_or(limit)
    }

    fn recall(&mut self, place: Place, len: usize) {
        self.timeline.begin_recall(place, len).unwrap();
        if len > 0 {
            self.n_recalls += 1;
            let item = |i| Item::Recalled(self.n_recalls, i);
            self.stream.recall = Some((place, self.len(), (0..len).map(item).collect()));
            self.is_near = place == Place::Near;
            self.rotate_recalled();
        }
        self.check_state();
    }

    fn rotate_recalled(&mut self) {
        for i in 0..self.timeline.sections().recalled {
            let slot = self.timeline.recalled_slot(i).0 as usize;
            let item = Item::Recalled(self.n_recalls, i);
            self.rows[slot] = Some((item, self.timeline.recalled_pos(i)));
        }
    }

    fn end_recall(&mut self) {
        let was_near = self.is_near;
        let moved = self.timeline.end_recall();
        for p in moved.start.0..moved.end.0 {
            let slot = self.timeline.slot(TokenPos(p)).0 as usize;
            assert_eq!(self.rows[slot].map(|r| r.0), Some(Item::Token(p as usize)));
            self.rows[slot] =
                Some((Item::Token(p as usize), self.timeline.window_pos(TokenPos(p))));
        }
        (self.stream.recall, self.stream.hidden_before) = (None, 0);
        self.is_near = false;
        // Clusters are measured with keys that no query sees any more.
        if self.stream.clusters.is_some() && was_near {
            for token in (self.timeline.unclustered.0..self.len() as u64).map(TokenPos) {
                let row = self.rows[self.timeline.slot(token).0 as usize];
                assert_eq!(row.map(|r| r.1), Some(self.timeline.window_pos(token)), "{self:?}");
            }
        }
        self.check_state();
    }

    fn hide_before(&mut self, token: usize) {
        self.timeline.hide_before(TokenPos(token as u64));
        let end = match &self.stream.recall {
            Some((Place::Near, at, _)) if self.is_near => *at,
            _ => self.len(),
        };
        self.stream.hidden_before = token.min(end);
        self.check_state();
    }

    /// A query sees the right keys, each at the distance that it has in the list.
    fn check_row(&self, row: &RowPlan) {
        let t = row.token.0 as usize;
        let mut seen = Vec::new();
        for span in row.spans.iter() {
            let query = match span.form {
                QueryForm::Window => row.window_pos,
                QueryForm::Cache => row.cache_pos,
            };
            for slot in span.first..span.first + span.len {
                let (item, key) = self.rows[slot].expect("a visible row was written");
                seen.push((query.0 as i64 - key.0 as i64, item));
            }
        }
        // Sums run in this order, which must not depend on where the ring wraps.
        let tokens = || seen.iter().filter(|s| matches!(s.1, Item::Token(_)));
        assert!(tokens().is_sorted_by_key(|s| s.1), "{row:?}");
        seen.sort_by_key(|s| std::cmp::Reverse(s.0));
        let places = self.stream.places_of(t);
        let distances = (0..places.len() as i64).rev();
        let expected = distances
            .zip(places)
            .flat_map(|(distance, items)| items.into_iter().map(move |item| (distance, item)));
        assert_eq!(seen, expected.collect::<Vec<_>>(), "query {t} of {self:?}");
        let n_places = usize::from(self.stream.clusters.is_some());
        let budget =
            self.stream.n_sink + n_places + self.timeline.recall_tokens() + self.stream.window;
        assert!(row.cache_pos.0 <= budget as u64, "{row:?} beyond the budget of {budget}");
    }

    /// The sections hold what the next query would see; the rest is evicted.
    fn check_state(&self) {
        let (n, timeline) = (self.len(), &self.timeline);
        let (mut is_visible, mut is_kept) = (vec![false; n + 1], vec![false; n + 1]);
        (0..self.stream.n_sink.min(n)).chain(self.stream.window_of(n)).for_each(|p| {
            if let Some(is_kept) = is_kept.get_mut(p) {
                *is_kept = true;
            }
        });
        for item in self.stream.cache_of(n) {
            if let Item::Token(p) = item {
                is_visible[p] = true;
            }
        }
        let sinks = n.min(self.stream.n_sink);
        let recalled = self.stream.recall.as_ref().map_or(0, |r| r.2.len());
        let window = is_visible[sinks..n].iter().filter(|v| **v).count();
        // What is due is added before the next query.
        let clusters = timeline.sections().clusters;
        if timeline.due_for_clusters().is_none() {
            assert_eq!(clusters, self.stream.clusters_at(n));
        }
        assert_eq!(timeline.sections(), Sections { sinks, clusters, recalled, window });
        assert!(recalled <= timeline.recall_tokens() && window <= self.stream.window);
        let (evicted, held) = (timeline.evicted(), timeline.held());
        assert!(evicted.start <= evicted.end && held.start <= held.end && held.end.0 == n as u64);
        for (p, is_kept) in is_kept[..n].iter().enumerate() {
            let token = TokenPos(p as u64);
            assert_eq!(evicted.contains(&token), !is_kept, "token {p} of {self:?}");
            if *is_kept || held.contains(&token) {
                let slot = timeline.slot(token).0 as usize;
                assert_eq!(self.rows[slot].map(|r| r.0), Some(Item::Token(p)), "{held:?}");
            }
        }
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {:?}", self.timeline, self.stream)
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn place(&mut self) -> Place {
        if self.below(2) == 0 { Place::Near } else { Place::Between }
    }
}

fn random_step(run: &mut Run, rng: &mut Rng) {
    let capacity = run.timeline.recall_tokens();
    let can_recall = run.stream.recall.is_none() && run.len() >= run.stream.n_sink;
    match rng.below(10) {
        0 if can_recall => run.recall(rng.place(), rng.below(capacity + 1)),
        1 => run.end_recall(),
        2 if rng.below(4) == 0 => run.hide_before(rng.below(run.len() + 3)),
        3 => run.append_all(1 + rng.below(40)),
        4 if !run.is_near => {
            let n = 1 + rng.below(run.longest_chunk(usize::MAX));
            let starts = [run.len() + rng.below(n), run.len() + n - 1];
            run.append_with(n, &starts[usize::from(starts[0] == starts[1])..]);
        }
        _ => {
            let longest = run.longest_chunk(usize::MAX);
            run.append(1 + rng.below(longest));
        }
    };
}

#[test]
fn random_operations_agree_with_the_naive_model() {
    for seed in 0..600 {
        let mut rng = Rng(seed);
        let (sink, window) = (rng.below(6), 1 + rng.below(24));
        let mut run = Run::sink(sink, window, rng.below(12), 1 + rng.below(9));
        for _ in 0..100 {
            random_step(&mut run, &mut rng);
        }
    }
}

/// With clusters behind the sinks, which come as segments leave.
#[test]
fn random_operations_with_clusters_agree_with_the_naive_model() {
    let mut n_seen = 0;
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let (sink, window) = (rng.below(6), 1 + rng.below(24));
        let mut run = Run::sink(sink, window, rng.below(12), 1 + rng.below(9))
            .with_clusters(1 + rng.below(20), 16 * (1 + rng.below(2)));
        for _ in 0..100 {
            random_step(&mut run, &mut rng);
            let state = run.timeline.state();
            let mut again = run.timeline.clone();
            again.restore(&state).unwrap();
            assert_eq!(again.state(), state);
        }
        n_seen += run.timeline.sections().clusters;
    }
    assert!(n_seen > 400);
}

#[test]
fn random_operations_on_a_dense_cache_agree_with_the_naive_model() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let policy = NeverEvict { n_sink: rng.below(6), max_tokens: 2000 };
        let mut run = Run::new(Arc::new(policy), rng.below(12), 1 + rng.below(9));
        while run.len() < 150 {
            random_step(&mut run, &mut rng);
        }
    }
}

/// Every cache of up to 3 sinks, window 4, chunk 3: 12 tokens with a recall that begins and ends
/// anywhere, in either place.
#[test]
fn small_spaces_in_full() {
    for (sink, window, chunk, len) in sizes() {
        for place in [Place::Near, Place::Between] {
            for begin in sink..=12 {
                let mut begun = Run::sink(sink, window, 2, chunk);
                begun.append_all(begin);
                begun.recall(place, len);
                for end in begin..=12 {
                    let mut run = begun.clone();
                    run.append_all(end - begin);
                    run.end_recall();
                    run.append_all(12 - end);
                }
            }
        }
    }
}

/// The same caches with any tokens hidden from any time of a recall on.
#[test]
fn small_spaces_with_hidden_tokens_in_full() {
    for (sink, window, chunk, len) in sizes() {
        for place in [Place::Near, Place::Between] {
            for (when, before) in (0..=6).flat_map(|w| (0..=sink + w + 4).map(move |b| (w, b))) {
                let mut run = Run::sink(sink, window, 2, chunk);
                run.append_all(sink + 3);
                run.recall(place, len);
                run.append_all(when);
                run.hide_before(before);
                run.append_all(2);
                run.end_recall();
                run.append_all(3);
            }
        }
    }
}

/// Sinks, window, chunk and length of a recall.
fn sizes() -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let sizes = (0..=3).flat_map(|s| (1..=4).map(move |w| (s, w)));
    let sizes = sizes.flat_map(|(s, w)| (1..=3).map(move |c| (s, w, c)));
    sizes.flat_map(|(s, w, c)| (0..=2).map(move |len| (s, w, c, len)))
}

#[test]
fn a_thousand_recalls() {
    let mut run = Run::sink(4, 40, 15, 8);
    let mut rng = Rng(1);
    run.append_all(50);
    for _ in 0..1000 {
        run.recall(rng.place(), 1 + rng.below(15));
        run.append_all(1 + rng.below(20));
        run.end_recall();
    }
}

#[test]
fn two_hundred_short_turns_in_one_window() {
    let mut run = Run::sink(4, 512, 300, 64);
    run.append_all(100);
    for turn in 0..200 {
        run.recall(Place::Near, 1 + turn % 300);
        run.append_all(2);
        run.end_recall();
    }
    assert_eq!(run.timeline.evicted(), TokenPos(4)..TokenPos(4));
}

#[test]
fn an_answer_of_ten_thousand_tokens_moves_its_recall_once() {
    for (window, chunk) in [(96, 1), (96, 64)] {
        let mut run = Run::sink(4, window, 30, chunk);
        run.append_all(200);
        run.recall(Place::Near, 30);
        let mut moved_at = None;
        while run.len() < 10_200 {
            let n = run.timeline.next_chunk(10_200 - run.len());
            let was_near = run.is_near;
            let first = run.append(n)[0].token;
            if was_near && !run.is_near {
                assert_eq!(moved_at.replace(first), None);
            }
        }
        // The query that is the first to see no token before the turn.
        assert_eq!(moved_at, Some(TokenPos(200).after(window)));
        run.end_recall();
        run.append_all(5);
    }
}

/// The bits of a result depend on positions and the order of spans, not on slots: without a recall
/// both are those of a cache that has no room for one.
#[test]
fn with_nothing_recalled_remember_has_the_positions_of_sink() {
    let plan = |recall_tokens: usize| {
        let mut run = Run::sink(3, 10, recall_tokens, 4);
        let mut rows = Vec::new();
        for _ in 0..30 {
            run.end_recall();
            if run.len() >= 3 {
                run.recall(Place::Near, 0);
            }
            let n = run.timeline.next_chunk(3);
            rows.extend(run.append(n));
        }
        let moved =
            |s: &Span| (s.first - if s.first < 3 { 0 } else { recall_tokens }, s.len, s.form);
        rows.into_iter()
            .map(|r| (r.window_pos, r.cache_pos, r.spans.iter().map(moved).collect::<Vec<_>>()))
            .collect::<Vec<_>>()
    };
    assert_eq!(plan(0), plan(7));
}
