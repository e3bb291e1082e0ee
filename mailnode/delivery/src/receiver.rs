//! Who runs the server that a recipient's mail goes to: big receivers by name, for metrics. Bounded: the list is fixed.

use quorumail_message::Domain;

/// A big receiver, by the names of its MX hosts, or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Receiver {
    /// A mailbox of this cluster.
    Here,
    /// Google: gmail.com and domains of others.
    Google,
    /// Microsoft: outlook.com, hotmail.com and domains of others.
    Microsoft,
    /// Yahoo and AOL.
    Yahoo,
    /// Apple: icloud.com.
    Apple,
    /// Proton.
    Proton,
    /// GMX, WEB.DE and mail.com.
    Gmx,
    /// T-Online.
    TOnline,
    /// Whoever else.
    Other,
}

/// Ends of names of MX hosts, and of domains for mail that never got as far as a host.
const ENDS: [(&str, Receiver); 22] = [
    ("google.com", Receiver::Google),
    ("googlemail.com", Receiver::Google),
    ("gmail.com", Receiver::Google),
    ("protection.outlook.com", Receiver::Microsoft),
    ("mx.microsoft", Receiver::Microsoft),
    ("outlook.com", Receiver::Microsoft),
    ("hotmail.com", Receiver::Microsoft),
    ("live.com", Receiver::Microsoft),
    ("yahoodns.net", Receiver::Yahoo),
    ("yahoo.com", Receiver::Yahoo),
    ("aol.com", Receiver::Yahoo),
    ("icloud.com", Receiver::Apple),
    ("me.com", Receiver::Apple),
    ("mac.com", Receiver::Apple),
    ("protonmail.ch", Receiver::Proton),
    ("proton.me", Receiver::Proton),
    ("gmx.net", Receiver::Gmx),
    ("gmx.de", Receiver::Gmx),
    ("web.de", Receiver::Gmx),
    ("mail.com", Receiver::Gmx),
    ("t-online.de", Receiver::TOnline),
    ("t-ipnet.de", Receiver::TOnline),
];

impl Receiver {
    /// By the host that was spoken to, else by the domain of the recipient.
    pub fn of(host: Option<&str>, domain: &Domain) -> Self {
        let name = host.unwrap_or(domain.as_str()).trim_end_matches('.').to_ascii_lowercase();
        let is_in = |end: &str| {
            name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        ENDS.iter().find(|(end, _)| is_in(end)).map_or(Self::Other, |(_, receiver)| *receiver)
    }

    /// As a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Google => "google",
            Self::Microsoft => "microsoft",
            Self::Yahoo => "yahoo",
            Self::Apple => "apple",
            Self::Proton => "proton",
            Self::Gmx => "gmx",
            Self::TOnline => "t-online",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_are_told_by_their_hosts_and_else_by_the_domain() {
        let of = |host: Option<&str>, domain: &str| Receiver::of(host, &domain.parse().unwrap()).name();
        for (host, domain, expected) in [
            (Some("aspmx.l.google.com"), "example.org", "google"),
            (Some("example-org.mail.protection.outlook.com."), "example.org", "microsoft"),
            (Some("MTA5.am0.yahoodns.net"), "yahoo.com", "yahoo"),
            (Some("mx01.mail.icloud.com"), "icloud.com", "apple"),
            (None, "gmail.com", "google"),
            (None, "example.org", "other"),
            // No more than the end of a word.
            (Some("mx.notgoogle.com"), "example.org", "other"),
            (Some("relay.example.net"), "gmail.com", "other"),
        ] {
            assert_eq!(of(host, domain), expected, "{host:?} {domain}");
        }
    }
}
