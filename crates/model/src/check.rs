//! Runs the checker over a whole state space and says what it found.

use std::fmt::Debug;
use std::hash::Hash;
use std::num::NonZeroUsize;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Distinct states.
    pub states: usize,
    /// Steps to the furthest one.
    pub depth: usize,
    /// The counterexample, if there is one: the shortest that the search met.
    pub broken: Option<Counterexample>,
    /// Situations that a model says are reached, and were not.
    pub missed: Vec<&'static str>,
}

/// How a property came to be broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterexample {
    /// What was to hold in every state.
    pub property: &'static str,
    /// The actions that led there.
    pub steps: Vec<String>,
}

/// Looks at every state, breadth first, on one thread, so that the same counterexample comes each time. Where a property is broken
/// it ends early, and looks again below that depth until it has a shortest counterexample.
pub fn check<M>(model: M) -> Found
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let mut found = look(model.clone(), None);
    while let Some(shorter) = found
        .broken
        .as_ref()
        .and_then(|broken| look(model.clone(), NonZeroUsize::new(broken.steps.len())).broken)
    {
        found.broken = Some(shorter);
    }
    found
}

/// One search; with `below`, only of what fewer steps reach.
fn look<M>(model: M, below: Option<NonZeroUsize>) -> Found
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let mut builder = model.checker().threads(1).finish_when(HasDiscoveries::AnyFailures);
    if let Some(steps) = below {
        // The checker counts states on the way, of which there is one more than steps, and leaves out the last one.
        builder = builder.target_max_depth(steps.get() + 1);
    }
    let checker = builder.spawn_bfs().join();
    let mut broken = Vec::new();
    let mut missed = Vec::new();
    let mut discoveries = checker.discoveries();
    for property in checker.model().properties() {
        match (property.expectation, discoveries.remove(property.name)) {
            (Expectation::Sometimes, None) => missed.push(property.name),
            (Expectation::Always, Some(path)) => {
                let steps = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
                broken.push(Counterexample { property: property.name, steps });
            }
            _ => {}
        }
    }
    let broken = broken.into_iter().min_by_key(|found: &Counterexample| found.steps.len());
    Found { states: checker.unique_state_count(), depth: checker.max_depth(), broken, missed }
}
