//! Rules that a test of the tests takes away, to see that they are missed. A build without the feature `sabotage` keeps all.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// An object whose deadline has passed is committed no more.
    Deadline,
    /// Every id is given once.
    FreshIds,
}

/// Which of them hold.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub(crate) struct Rules {
    #[cfg(feature = "sabotage")]
    broken: Option<Rule>,
}

impl Rules {
    #[cfg(feature = "sabotage")]
    pub(crate) fn all_but(rule: Rule) -> Self {
        Self { broken: Some(rule) }
    }

    #[cfg(feature = "sabotage")]
    pub(crate) fn keep(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    #[cfg(not(feature = "sabotage"))]
    pub(crate) const fn keep(self, _rule: Rule) -> bool {
        true
    }
}
