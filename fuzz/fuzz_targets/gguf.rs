#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nearshore_testkit::fuzz::gguf(data));
