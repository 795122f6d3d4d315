//! Runtimes that execute ML Programs: the Runtime trait and the portable runtime.
