//! Verdicts and evidence: what must hold before anyone trusts a shard.
