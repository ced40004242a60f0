//! Positions and slots of a stream: the integers of the cache.
//!
//! The rules, for a query at stream position `t` (see `docs/NOTATION.md`):
//!
//! - A token `p` of the window was rotated at RopePos `p + shift`. `shift` is 0 until a recall
//!   `near` opens positions, and grows with each one; only differences matter.
//! - `q1 = t + shift`. It meets the keys of the window and those recalled `near`.
//! - `q2 = S + c + R + (q1 - RopePos of the oldest window key that t sees)`, c 1 if there are clusters
//!   (in place of the sinks, S + c is their number), R the tokens recalled
//!   `between`, or `near` if all of the window before them is hidden. It meets the sinks (rotated at
//!   0..S), the clusters (at S) and the keys recalled `between` (at S+c..S+c+R).
//!   So StreamingLLM's positions result: `q2` is the query's index inside its cache.
//! - A recall `near` of R tokens before token `at` gives them the positions
//!   `at + shift .. at + shift + R` and adds R to the shift of all tokens from `at` on: the *gap*.
//!   When the recall ends, the older keys of the window move up by R: [`Timeline::end_recall`].

use std::ops::Range;
use std::sync::Arc;

use everstream_kernels::{QueryForm, Span};

use crate::{CacheError, ClusterConfig, ClusterPlace, EvictionPolicy, RopePos, Slot, TokenPos};

/// Where recalled tokens stand in the order of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Right after the sinks, before the window.
    Between,
    /// Right before the newest turn.
    Near,
}

impl Place {
    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Between => "between",
            Self::Near => "near",
        }
    }
}

/// Tokens in the recalled section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recalled {
    place: Place,
    len: usize,
}

/// Positions opened inside the window by a recall `near`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    /// The first token after the opened positions.
    at: TokenPos,
    len: usize,
}

/// Tokens held, by section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sections {
    /// Sinks.
    pub sinks: usize,
    /// Clusters.
    pub clusters: usize,
    /// Recalled context.
    pub recalled: usize,
    /// Tokens of the window that the next query will see: those that are hidden do not count.
    pub window: usize,
}

/// What changes of a [`Timeline`] as the stream goes on: what is saved of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the timeline, whose docs explain them")]
pub struct TimelineState {
    pub next: TokenPos,
    pub shift: u64,
    /// The first token after opened positions, and how many they are.
    pub gap: Option<(TokenPos, usize)>,
    pub recalled: Option<(Place, usize)>,
    pub hidden_before: TokenPos,
    /// Clusters that there are, and the first token that is in none of them.
    pub clusters: (usize, TokenPos),
}

/// Up to [`Spans::MAX`] spans, without allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    spans: [Span; Self::MAX],
    len: usize,
}

impl Spans {
    /// Sinks, clusters, recalled context and the two parts of a ring.
    pub const MAX: usize = 5;

    pub(crate) fn new() -> Self {
        let none = Span { first: 0, len: 0, form: QueryForm::Window };
        Self { spans: [none; Self::MAX], len: 0 }
    }

    pub(crate) fn add(&mut self, first: usize, len: usize, form: QueryForm) {
        if len > 0 {
            self.spans[self.len] = Span { first, len, form };
            self.len += 1;
        }
    }
}

impl std::ops::Deref for Spans {
    type Target = [Span];

    fn deref(&self) -> &[Span] {
        &self.spans[..self.len]
    }
}

/// What happens to one new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlan {
    /// Its position in the stream; of a row that is computed again, where the stream ends.
    pub token: TokenPos,
    /// Where its key and value go.
    pub slot: Slot,
    /// Where its key is rotated, and the first form of its query.
    pub window_pos: RopePos,
    /// Where the second form of its query is rotated.
    pub cache_pos: RopePos,
    /// What it sees, itself included.
    pub spans: Spans,
    /// What of this a layer with a sliding window of its own sees; the same if there are none.
    pub sliding_spans: Spans,
}

/// The integer state of a cache.
#[derive(Clone, Debug)]
pub struct Timeline {
    policy: Arc<dyn EvictionPolicy>,
    recall_tokens: usize,
    chunk_tokens: usize,
    /// Keys that stand so far before a query, or farther, are not seen in sliding layers.
    sliding_window: Option<usize>,
    clusters: Option<ClusterConfig>,
    /// Clusters that there are: all, or fewer while hardly anything has left.
    n_clusters: usize,
    /// The first token that is in none of them.
    unclustered: TokenPos,
    /// Length of the stream.
    next: TokenPos,
    shift: u64,
    gap: Option<Gap>,
    recalled: Option<Recalled>,
    /// Tokens before this one (and after the sinks) are not seen for now.
    hidden_before: TokenPos,
}

impl Timeline {
    /// An empty stream.
    ///
    /// # Errors
    ///
    /// [`CacheError::Config`] for a window or chunk of no tokens, or sizes beyond 2^31.
    pub fn new(
        policy: Arc<dyn EvictionPolicy>,
        recall_tokens: usize,
        chunk_tokens: usize,
    ) -> Result<Self, CacheError> {
        let at_least_one = "at least 1";
        let sizes = [
            ("the window", policy.window_tokens(), 1),
            ("a prefill chunk", chunk_tokens, 1),
            ("the section for recalled context", recall_tokens, 0),
            ("the number of sinks", policy.n_sink(), 0),
        ];
        for (what, value, least) in sizes {
            if value < least {
                return Err(CacheError::Config { what, value, bound: at_least_one });
            }
            if value > 1 << 29 {
                return Err(CacheError::Config { what, value, bound: "at most 536870912" });
            }
        }
        let first_of_window = TokenPos(policy.n_sink() as u64);
        Ok(Self {
            policy,
            recall_tokens,
            chunk_tokens,
            sliding_window: None,
            clusters: None,
            n_clusters: 0,
            unclustered: first_of_window,
            next: TokenPos(0),
            shift: 0,
            gap: None,
            recalled: None,
            hidden_before: TokenPos(0),
        })
    }

    /// Of layers with a sliding window of so many tokens, the query's own included:
    /// [`RowPlan::sliding_spans`]. Places are counted in the cache, as positions are: what is
    /// recalled right before a turn is near it.
    #[must_use]
    pub fn with_sliding_window(self, sliding_window: Option<usize>) -> Self {
        Self { sliding_window, ..self }
    }

    /// With a section for clusters; tokens are added to them as they leave.
    #[must_use]
    pub fn with_clusters(self, clusters: Option<ClusterConfig>) -> Self {
        Self { clusters: clusters.filter(|c| c.n_clusters > 0 && self.policy.evicts()), ..self }
    }

    /// How what leaves is summarised, if it is.
    #[must_use]
    pub fn clusters(&self) -> Option<ClusterConfig> {
        self.clusters
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &dyn EvictionPolicy {
        &*self.policy
    }

    /// Length of the stream: the position of the next token.
    #[must_use]
    pub fn next(&self) -> TokenPos {
        self.next
    }

    /// Capacity of the recalled section.
    #[must_use]
    pub fn recall_tokens(&self) -> usize {
        self.recall_tokens
    }

    /// Longest chunk.
    #[must_use]
    pub fn chunk_tokens(&self) -> usize {
        self.chunk_tokens
    }

    /// Rows of the ring: the window and, if tokens ever leave it, one chunk.
    #[must_use]
    pub fn ring_slots(&self) -> usize {
        // A segment is held until all of it can be added to the clusters.
        let segment_tokens = self.clusters.map_or(0, |clusters| clusters.segment_tokens);
        let more = self.chunk_tokens.max(segment_tokens);
        self.policy.window_tokens() + if self.policy.evicts() { more } else { 0 }
    }

    /// Rows of all sections.
    #[must_use]
    pub fn n_slots(&self) -> usize {
        self.first_ring_slot() + self.ring_slots()
    }

    fn first_recalled_slot(&self) -> usize {
        self.policy.n_sink() + self.clusters.map_or(0, |clusters| clusters.n_clusters)
    }

    fn first_ring_slot(&self) -> usize {
        self.first_recalled_slot() + self.recall_tokens
    }

    /// The slot of the `i`-th cluster.
    #[must_use]
    pub fn cluster_slot(&self, i: usize) -> Slot {
        Slot((self.policy.n_sink() + i) as u32)
    }

    /// Where the key of the `i`-th cluster is rotated.
    #[must_use]
    pub fn cluster_pos(&self, i: usize) -> RopePos {
        match self.clusters_are_sinks() {
            true => RopePos(i as u64),
            false => RopePos(self.policy.n_sink() as u64),
        }
    }

    fn clusters_are_sinks(&self) -> bool {
        let is_sinks = |clusters: ClusterConfig| clusters.place == ClusterPlace::Sinks;
        self.n_clusters > 0 && self.clusters.is_some_and(is_sinks)
    }

    /// Positions that sinks and clusters take.
    pub(crate) fn n_before_recalled(&self) -> usize {
        match (self.clusters_are_sinks(), self.n_clusters) {
            (true, n) => n,
            (false, n) => self.policy.n_sink() + n.min(1),
        }
    }

    /// Tokens that are in clusters.
    pub(crate) fn n_clustered(&self) -> u64 {
        self.unclustered.0.saturating_sub(self.policy.n_sink() as u64)
    }

    /// The tokens that are to be added to the clusters before more is read.
    #[must_use]
    pub fn due_for_clusters(&self) -> Option<Range<TokenPos>> {
        let segment_tokens = self.clusters?.segment_tokens;
        let end = self.unclustered.after(segment_tokens);
        (self.oldest_kept(self.next) >= end).then_some(self.unclustered..end)
    }

    /// The tokens that are [due](Self::due_for_clusters) have been added; there are now so many
    /// clusters.
    pub fn clustered(&mut self, n_clusters: usize) {
        if let Some(due) = self.due_for_clusters() {
            (self.unclustered, self.n_clusters) = (due.end, n_clusters);
        }
    }

    /// Tokens that have left: those between the sinks and the window. Hidden ones have not.
    #[must_use]
    pub fn evicted(&self) -> Range<TokenPos> {
        let oldest = self.oldest_kept(self.next);
        self.first_of_window().min(oldest)..oldest
    }

    /// Tokens whose rows are still in the ring, the oldest of them perhaps no longer visible, if
    /// nothing was ever written beyond the end of the stream.
    #[must_use]
    pub(crate) fn held(&self) -> Range<TokenPos> {
        let oldest = self.next.before(self.ring_slots()).max(self.first_of_window());
        oldest.min(self.next)..self.next
    }

    /// Tokens held, by section.
    #[must_use]
    pub fn sections(&self) -> Sections {
        Sections {
            sinks: self.next.min(self.first_of_window()).0 as usize,
            clusters: self.n_clusters,
            recalled: self.recalled.map_or(0, |r| r.len),
            window: self.next.since(self.oldest_seen(self.next, self.hidden_before)),
        }
    }

    /// The slot of the `i`-th recalled token.
    #[must_use]
    pub fn recalled_slot(&self, i: usize) -> Slot {
        Slot((self.first_recalled_slot() + i) as u32)
    }

    /// The slot of a token.
    #[must_use]
    pub fn slot(&self, token: TokenPos) -> Slot {
        let n_sink = self.policy.n_sink();
        if token < self.first_of_window() {
            return Slot(token.0 as u32);
        }
        let row = (token.0 - n_sink as u64) % self.ring_slots() as u64;
        Slot(self.first_ring_slot() as u32 + row as u32)
    }

    /// How many of `n_tokens` can be taken as one chunk now. Chunks are cut where a recall moves
    /// from `near` to `between`.
    #[must_use]
    pub fn next_chunk(&self, n_tokens: usize) -> usize {
        let limit = n_tokens.min(self.chunk_tokens);
        let next_segment = self.clusters.map(|clusters| {
            let unclustered = self.due_for_clusters().map_or(self.unclustered, |due| due.end);
            unclustered.after(clusters.segment_tokens)
        });
        // The first token is exempt: what is due is done before it.
        let is_due = |i: &usize| {
            let oldest = self.oldest_kept(self.next.after(*i));
            self.gap.is_some_and(|gap| oldest >= gap.at)
                || next_segment.is_some_and(|segment| oldest >= segment)
        };
        match self.gap.is_some() || next_segment.is_some() {
            true => (1..limit).find(is_due).unwrap_or(limit),
            false => limit,
        }
    }

    /// Whether the window has passed a recall `near`, which must now move: see
    /// [`Timeline::move_between`].
    #[must_use]
    pub fn is_move_due(&self) -> bool {
        self.gap.is_some_and(|gap| self.oldest_kept(self.next) >= gap.at)
    }

    /// Makes the recalled tokens stand `between`; their keys must then be rotated at
    /// [`Timeline::recalled_pos`]. No key of the window moves.
    pub fn move_between(&mut self) {
        self.gap = None;
        if let Some(recalled) = &mut self.recalled {
            recalled.place = Place::Between;
        }
    }

    /// Makes tokens that were recalled `between` stand right before the next token of the stream;
    /// their keys must then be rotated at [`Timeline::recalled_pos`]. No key of the window moves.
    pub fn move_near(&mut self) {
        let Some(recalled) = &mut self.recalled else { return };
        if recalled.place == Place::Between {
            recalled.place = Place::Near;
            self.gap = Some(Gap { at: self.next, len: recalled.len });
            self.shift += recalled.len as u64;
        }
    }

    /// Whether `n_tokens` can be planned now.
    ///
    /// # Errors
    ///
    /// [`CacheError::ChunkTooLong`] or [`CacheError::Full`].
    pub fn check(&self, n_tokens: usize) -> Result<(), CacheError> {
        let limit = self.next_chunk(usize::MAX);
        if n_tokens == 0 || n_tokens > limit {
            return Err(CacheError::ChunkTooLong { n_tokens, limit });
        }
        let end = self.next.after(n_tokens);
        let capacity = self.policy.n_sink() + self.policy.window_tokens();
        if !self.policy.evicts() && end.0 > capacity as u64 {
            return Err(CacheError::Full { n_tokens: end.0, capacity });
        }
        Ok(())
    }

    /// Plans the next `n_tokens`; [`Timeline::advance`] makes it so. From each of `starts` on, the
    /// tokens of the window before it are hidden, as by [`Timeline::hide_before`], which the caller
    /// calls for the last of them after `advance`. Not while something is recalled `near`.
    ///
    /// # Errors
    ///
    /// As [`Timeline::check`]; `rows` is then untouched.
    pub fn plan(
        &self,
        n_tokens: usize,
        starts: &[TokenPos],
        rows: &mut Vec<RowPlan>,
    ) -> Result<(), CacheError> {
        self.check(n_tokens)?;
        debug_assert!(starts.is_empty() || self.gap.is_none(), "a hole behind what is recalled");
        rows.clear();
        let mut hidden_before = self.hidden_before;
        rows.extend((0..n_tokens).map(|i| {
            let token = self.next.after(i);
            if starts.contains(&token) {
                hidden_before = token;
            }
            self.row(token, hidden_before)
        }));
        Ok(())
    }

    /// Plans rows of the recalled section, which stands `between`, to be computed again: each of
    /// them sees the sinks (or the clusters in their place), what is recalled before it, and itself.
    ///
    /// # Errors
    ///
    /// [`CacheError::NotRecalled`] if one of them is not recalled, or not `between`, or they do not
    /// rise; `plan` is then untouched.
    pub fn plan_recalled(&self, rows: &[usize], plan: &mut Vec<RowPlan>) -> Result<(), CacheError> {
        let len = match self.recalled {
            Some(Recalled { place: Place::Between, len }) => len,
            _ => 0,
        };
        let rises = rows.iter().is_sorted_by(|a, b| a < b);
        if let Some(&row) = rows.last().filter(|&&row| row >= len || !rises) {
            return Err(CacheError::NotRecalled { row, n_tokens: len });
        }
        plan.clear();
        plan.extend(rows.iter().map(|&i| {
            let pos = self.recalled_pos(i);
            let (mut spans, mut sliding_spans) = (Spans::new(), Spans::new());
            self.add_before_recalled(pos, false, &mut spans, &mut sliding_spans);
            let (first, n_seen) = (self.first_recalled_slot(), i + 1);
            let far = (self.first_near(pos).0 as usize).saturating_sub(self.n_before_recalled());
            spans.add(first, n_seen, QueryForm::Cache);
            sliding_spans.add(first + far, n_seen - far, QueryForm::Cache);
            let (token, slot) = (self.next, self.recalled_slot(i));
            RowPlan { token, slot, window_pos: pos, cache_pos: pos, spans, sliding_spans }
        }));
        Ok(())
    }

    /// What is to be saved.
    #[must_use]
    pub fn state(&self) -> TimelineState {
        TimelineState {
            next: self.next,
            shift: self.shift,
            gap: self.gap.map(|gap| (gap.at, gap.len)),
            recalled: self.recalled.map(|recalled| (recalled.place, recalled.len)),
            hidden_before: self.hidden_before,
            clusters: (self.n_clusters, self.unclustered),
        }
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    ///
    /// [`CacheError::State`] for one that a timeline of this configuration cannot be in.
    pub fn restore(&mut self, state: &TimelineState) -> Result<(), CacheError> {
        let TimelineState { next, shift, gap, recalled, hidden_before, clusters } = *state;
        let (n_clusters, unclustered) = clusters;
        let fits = recalled.is_none_or(|(_, len)| {
            len > 0 && len <= self.recall_tokens && next >= self.first_of_window()
        });
        let is_gap_right = gap.is_none_or(|(at, len)| {
            recalled == Some((Place::Near, len)) && at <= next && len as u64 <= shift
        });
        let can_hide = hidden_before <= gap.map_or(next, |(at, _)| at);
        // Positions are added to each other; far below the limit nothing wraps.
        let is_small = [next.0, shift, unclustered.0].iter().all(|&position| position < 1 << 62);
        let is_full = !self.policy.evicts()
            && next.0 > (self.policy.n_sink() + self.policy.window_tokens()) as u64;
        let are_clusters_right = match self.clusters {
            Some(_) if !is_small => false,
            Some(config) => {
                let segment = config.segment_tokens as u64;
                n_clusters <= config.n_clusters
                    && (n_clusters > 0) == (unclustered > self.first_of_window())
                    && unclustered >= self.first_of_window()
                    && (unclustered.0 - self.policy.n_sink() as u64).is_multiple_of(segment)
                    && unclustered <= self.oldest_kept(next)
                    && self.oldest_kept(next) <= unclustered.after(config.segment_tokens)
            }
            None => (n_clusters, unclustered) == (0, self.first_of_window()),
        };
        if !fits || !is_gap_right || !can_hide || !is_small || is_full || !are_clusters_right {
            return Err(CacheError::State { n_tokens: next.0 });
        }
        self.next = next;
        self.shift = shift;
        self.gap = gap.map(|(at, len)| Gap { at, len });
        self.recalled = recalled.map(|(place, len)| Recalled { place, len });
        self.hidden_before = hidden_before;
        (self.n_clusters, self.unclustered) = (n_clusters, unclustered);
        Ok(())
    }

    /// The slots of all tokens that a later query may see or a cluster may get, in a fixed order.
    pub fn live_slots(&self) -> impl Iterator<Item = Slot> + Clone + '_ {
        let Sections { sinks, clusters, recalled, .. } = self.sections();
        let sinks = (0..sinks).map(|i| self.slot(TokenPos(i as u64)));
        let clusters = (0..clusters).map(|i| self.cluster_slot(i));
        let recalled = (0..recalled).map(|i| self.recalled_slot(i));
        let oldest = self.oldest_live();
        let window = (0..self.next.since(oldest)).map(move |i| self.slot(oldest.after(i)));
        sinks.chain(clusters).chain(recalled).chain(window)
    }

    /// Appends `n_tokens` to the stream.
    pub fn advance(&mut self, n_tokens: usize) {
        self.next = self.next.after(n_tokens);
    }

    /// Hides the tokens of the window before `token`, and none but those, until the next recall
    /// ends. They keep their rows, and are seen again afterwards. What follows a recall `near` is
    /// never hidden: there is no hole between a query and what was recalled for it.
    pub fn hide_before(&mut self, token: TokenPos) {
        self.hidden_before = token.min(self.gap.map_or(self.next, |gap| gap.at));
    }

    /// Opens the recalled section for `len` tokens.
    ///
    /// # Errors
    ///
    /// [`CacheError::RecallTooLarge`], [`CacheError::RecallActive`], [`CacheError::SinksNotFull`].
    pub fn begin_recall(&mut self, place: Place, len: usize) -> Result<(), CacheError> {
        if len > self.recall_tokens {
            let capacity = self.recall_tokens;
            return Err(CacheError::RecallTooLarge { n_tokens: len, capacity });
        }
        if let Some(active) = self.recalled {
            return Err(CacheError::RecallActive { n_tokens: active.len });
        }
        if len == 0 {
            return Ok(());
        }
        if self.next < self.first_of_window() {
            let n_sink = self.policy.n_sink();
            return Err(CacheError::SinksNotFull { n_tokens: self.next.0, n_sink });
        }
        self.recalled = Some(Recalled { place: Place::Between, len });
        if place == Place::Near {
            self.move_near();
        }
        Ok(())
    }

    /// Where the key of the `i`-th recalled token is rotated.
    #[must_use]
    pub fn recalled_pos(&self, i: usize) -> RopePos {
        match self.gap {
            Some(gap) => RopePos(gap.at.0 + self.shift - gap.len as u64).after(i),
            None => RopePos(self.n_before_recalled() as u64).after(i),
        }
    }

    /// Empties the recalled section. Returns the tokens whose keys must be rotated again, at
    /// [`Timeline::window_pos`], to close the gap: of the window and, since clusters are measured with
    /// the windows of earlier queries, of what is in none of them yet.
    pub fn end_recall(&mut self) -> Range<TokenPos> {
        self.recalled = None;
        self.hidden_before = TokenPos(0);
        match self.gap.take() {
            Some(gap) => self.oldest_live().min(gap.at)..gap.at,
            None => self.next..self.next,
        }
    }

    /// Where the key of a token is rotated.
    #[must_use]
    pub fn window_pos(&self, token: TokenPos) -> RopePos {
        if token < self.first_of_window() {
            return RopePos(token.0);
        }
        let behind = self.gap.filter(|gap| token < gap.at).map_or(0, |gap| gap.len as u64);
        RopePos(token.0 + self.shift - behind)
    }

    fn first_of_window(&self) -> TokenPos {
        TokenPos(self.policy.n_sink() as u64)
    }

    /// The oldest token after the sinks that the query at `query` sees.
    fn oldest_seen(&self, query: TokenPos, hidden_before: TokenPos) -> TokenPos {
        self.oldest_kept(query).max(hidden_before.min(query))
    }

    /// The same, or would see if nothing were hidden.
    fn oldest_kept(&self, query: TokenPos) -> TokenPos {
        if query < self.first_of_window() {
            return self.first_of_window();
        }
        self.policy.oldest_visible(query).min(query)
    }

    /// The oldest token after the sinks that a later query may see or a cluster may get.
    fn oldest_live(&self) -> TokenPos {
        let oldest = self.oldest_kept(self.next);
        if self.clusters.is_some() { oldest.min(self.unclustered) } else { oldest }
    }

    fn row(&self, token: TokenPos, hidden_before: TokenPos) -> RowPlan {
        let (slot, window_pos) = (self.slot(token), self.window_pos(token));
        let (mut spans, mut sliding_spans) = (Spans::new(), Spans::new());
        if token < self.first_of_window() {
            let first = self.first_near(window_pos).0 as usize;
            let end = token.0 as usize + 1;
            spans.add(0, end, QueryForm::Window);
            sliding_spans.add(first, end - first, QueryForm::Window);
            return RowPlan {
                token,
                slot,
                window_pos,
                cache_pos: window_pos,
                spans,
                sliding_spans,
            };
        }
        let oldest = self.oldest_seen(token, hidden_before);
        // Nothing of the window stands before a recall `near` if all that could is hidden.
        let is_before_window = self.gap.is_none_or(|gap| oldest >= gap.at);
        let recalled = self.recalled.filter(|_| is_before_window).map_or(0, |r| r.len);
        let before_window = self.n_before_recalled() + recalled;
        let distance = window_pos.0 - self.window_pos(oldest).0;
        let cache_pos = RopePos(before_window as u64 + distance);

        // Clusters are what stood before the window: who sees a part of it only does not see them.
        let sees_clusters = oldest == self.oldest_kept(token);
        self.add_before_recalled(cache_pos, sees_clusters, &mut spans, &mut sliding_spans);
        let mut add = |first: usize, len: usize, form: QueryForm, key_pos: RopePos| {
            let query_pos = match form {
                QueryForm::Window => window_pos,
                QueryForm::Cache => cache_pos,
            };
            let far = self.first_near(query_pos).0.saturating_sub(key_pos.0);
            let far = len.min(usize::try_from(far).unwrap_or(usize::MAX));
            spans.add(first, len, form);
            sliding_spans.add(first + far, len - far, form);
        };
        if let Some(Recalled { place, len }) = self.recalled {
            let form = match place {
                Place::Near => QueryForm::Window,
                Place::Between => QueryForm::Cache,
            };
            add(self.first_recalled_slot(), len, form, self.recalled_pos(0));
        }
        self.add_window(oldest, token, &mut spans);
        let oldest_near = self.oldest_from(self.first_near(window_pos));
        self.add_window(oldest.max(oldest_near), token, &mut sliding_spans);
        RowPlan { token, slot, window_pos, cache_pos, spans, sliding_spans }
    }

    /// Adds the sinks and the clusters, for a query whose second form stands at `query`.
    fn add_before_recalled(
        &self,
        query: RopePos,
        sees_clusters: bool,
        spans: &mut Spans,
        sliding_spans: &mut Spans,
    ) {
        let first_near = self.first_near(query).0 as usize;
        let (n_sink, n_clusters) = (self.policy.n_sink(), self.n_clusters);
        let mut add = |first: usize, len: usize, far: usize| {
            let far = far.min(len);
            spans.add(first, len, QueryForm::Cache);
            sliding_spans.add(first + far, len - far, QueryForm::Cache);
        };
        if self.clusters_are_sinks() {
            add(n_sink, n_clusters, first_near);
        } else {
            add(0, n_sink, first_near);
            if sees_clusters {
                // All at one position.
                add(n_sink, n_clusters, if first_near > n_sink { n_clusters } else { 0 });
            }
        }
    }

    /// The first position that a query at `query` sees in sliding layers.
    fn first_near(&self, query: RopePos) -> RopePos {
        RopePos(self.sliding_window.map_or(0, |width| (query.0 + 1).saturating_sub(width as u64)))
    }

    /// The first token of the window whose key is rotated at `pos` or later.
    fn oldest_from(&self, pos: RopePos) -> TokenPos {
        let token = TokenPos(pos.0.saturating_sub(self.shift));
        match self.gap {
            Some(gap) if token < gap.at => {
                TokenPos((pos.0 + gap.len as u64).saturating_sub(self.shift)).min(gap.at)
            }
            _ => token,
        }
    }

    /// Adds the rows `oldest ..= newest` of the ring: one span, or two where it wraps.
    pub(crate) fn add_window(&self, oldest: TokenPos, newest: TokenPos, spans: &mut Spans) {
        let base = self.first_ring_slot();
        let first = self.slot(oldest).0 as usize;
        let len = newest.since(oldest) + 1;
        let until_wrap = base + self.ring_slots() - first;
        spans.add(first, len.min(until_wrap), QueryForm::Window);
        spans.add(base, len.saturating_sub(until_wrap), QueryForm::Window);
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
