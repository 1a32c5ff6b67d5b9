//! The client against servers: a real llama.cpp, and doubles that are slow, busy, or break off.

mod fake;
mod llama;
mod tls;
mod trouble;
