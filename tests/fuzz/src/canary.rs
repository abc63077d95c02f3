//! A target with a fault in it, which the fuzzer must find by following coverage: proof that the others are really searched.

pub fn run(data: &[u8]) {
    let expected = b"coverage";
    for (n, byte) in expected.iter().enumerate() {
        if data.get(n) != Some(byte) {
            return;
        }
    }
    panic!("found");
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![b"nothing".to_vec()]
}
