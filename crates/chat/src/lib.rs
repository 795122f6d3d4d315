//! Conversations: tokenizer, chat template, sampler, and the Session that drives a bundle's shards.
