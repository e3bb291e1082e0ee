//! Whether a password belongs to a hash: argon2 (PHC strings), bcrypt, sha512-crypt and sha256-crypt.
//!
//! The cost of a hash is what its maker chose, within bounds: a hash that would keep a processor busy for minutes is
//! treated as one that nothing matches.

use argon2::{Argon2, PasswordHash, PasswordVerifier};

/// Longest password that is looked at, in bytes. RFC 4616 sets no bound; longer ones would only cost work.
pub const MAX_PASSWORD: usize = 1024;
/// bcrypt: log2 of the rounds.
const MAX_BCRYPT_COST: u32 = 15;
/// sha-crypt: rounds.
const MAX_SHA_ROUNDS: u32 = 1_000_000;
/// argon2: KiB of memory.
const MAX_ARGON2_MEMORY: u32 = 256 * 1024;
/// argon2: passes.
const MAX_ARGON2_PASSES: u32 = 16;
/// What unknown users are checked against, so that they take as long as known ones: argon2id with the default
/// parameters, of a random password that nobody kept.
pub const DUMMY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cXVvcnVtYWlsLWR1bW15LXM$OJiVdwIxu8iHKqYMaGQ5cPz4yrXSmTDYVNjGT0HWUNU";

/// Blocks the thread for as long as the hash is costly: some tens of milliseconds.
pub fn matches(password: &str, hash: &str) -> bool {
    if password.len() > MAX_PASSWORD {
        return false;
    }
    if hash.starts_with("$argon2") {
        argon2_matches(password, hash)
    } else if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix)) {
        bcrypt_cost(hash).is_some_and(|cost| cost <= MAX_BCRYPT_COST)
            && bcrypt::verify(password, hash).unwrap_or(false)
    } else if hash.starts_with("$6$") {
        sha_rounds_bounded(hash) && sha_crypt::sha512_check(password, hash).is_ok()
    } else if hash.starts_with("$5$") {
        sha_rounds_bounded(hash) && sha_crypt::sha256_check(password, hash).is_ok()
    } else {
        false
    }
}

fn argon2_matches(password: &str, hash: &str) -> bool {
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    let Ok(params) = argon2::Params::try_from(&parsed) else { return false };
    params.m_cost() <= MAX_ARGON2_MEMORY
        && params.t_cost() <= MAX_ARGON2_PASSES
        && Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok()
}

fn bcrypt_cost(hash: &str) -> Option<u32> {
    hash.split('$').nth(2)?.parse().ok()
}

fn sha_rounds_bounded(hash: &str) -> bool {
    match hash.split('$').nth(2).and_then(|field| field.strip_prefix("rounds=")) {
        Some(rounds) => rounds.parse::<u32>().is_ok_and(|rounds| rounds <= MAX_SHA_ROUNDS),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher, password_hash::SaltString};

    use super::*;

    fn argon2(password: &str) -> String {
        let salt = SaltString::encode_b64(b"0123456789abcdef").unwrap();
        Argon2::default().hash_password(password.as_bytes(), &salt).unwrap().to_string()
    }

    #[test]
    fn every_kind_of_hash_matches_its_password_only() {
        let hashes = [
            argon2("secret"),
            bcrypt::hash("secret", 4).unwrap(),
            sha_crypt::sha512_simple("secret", &sha_crypt::Sha512Params::new(1000).unwrap()).unwrap(),
            sha_crypt::sha256_simple("secret", &sha_crypt::Sha256Params::new(1000).unwrap()).unwrap(),
        ];
        for hash in hashes {
            assert!(matches("secret", &hash), "{hash}");
            assert!(!matches("Secret", &hash), "{hash}");
            assert!(!matches("", &hash), "{hash}");
        }
        // Made by `openssl passwd`.
        for vector in [
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5",
        ] {
            assert!(matches("Hello world!", vector));
        }
    }

    #[test]
    fn what_is_no_hash_matches_nothing() {
        for hash in
            ["", "secret", "$6$", "$6$salt", "$6$salt$short", "$2b$", "$2b$04$short", "$argon2id$", "$1$a$b"]
        {
            assert!(!matches("secret", hash), "{hash:?}");
            assert!(!matches("", hash), "{hash:?}");
        }
    }

    #[test]
    fn a_hash_that_costs_minutes_is_not_computed() {
        let begun = std::time::Instant::now();
        assert!(!matches("secret", "$6$rounds=999999999$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjlO"));
        assert!(!matches("secret", "$2b$31$abcdefghijklmnopqrstuuJ7OqY4QXcJ9Vd9wgLqE7mZ3fWlL1a2e"));
        let huge = argon2("secret").replace("t=2", "t=4000000");
        assert!(!matches("secret", &huge));
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn the_dummy_hash_costs_what_a_real_one_does() {
        let hash = PasswordHash::new(DUMMY_HASH).unwrap();
        let params = argon2::Params::try_from(&hash).unwrap();
        assert_eq!(
            (params.m_cost(), params.t_cost()),
            (Argon2::default().params().m_cost(), Argon2::default().params().t_cost())
        );
        assert!(hash.hash.is_some());
    }
}
