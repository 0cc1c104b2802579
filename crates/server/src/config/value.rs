//! The kinds of value that a setting can have, and how each is written.
//!
//! A duration is a whole number with a unit (`200ms`, `1s`, `5m`), a size one with a
//! binary unit (`8MiB`, `512KiB`, `100B`). Both refuse a bare number, because a number
//! without a unit is read differently by everybody.

use std::time::Duration;

/// A setting's value: read from text, written back as the text that reads the same.
pub trait Setting: Sized + Clone {
    /// Reads the value; the error says what was expected.
    fn parse(text: &str) -> Result<Self, String>;
    /// Writes the value in the form that `parse` accepts.
    fn render(&self) -> String;
    /// True when TOML writes the value without quotes.
    const BARE: bool;
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The size as a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Splits `200ms` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let split = text.find(|letter: char| !letter.is_ascii_digit())?;
    let number = text[..split].parse().ok()?;
    Some((number, text[split..].trim()))
}

impl Setting for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no duration; write for example 200ms, 1s or 5m");
        let (number, unit) = number_and_unit(text.trim()).ok_or_else(expected)?;
        let milliseconds = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            _ => None,
        };
        milliseconds.map(Duration::from_millis).ok_or_else(expected)
    }

    fn render(&self) -> String {
        let milliseconds = self.as_millis();
        match milliseconds {
            0 => "0ms".to_owned(),
            whole if whole % 60_000 == 0 => format!("{}m", whole / 60_000),
            whole if whole % 1_000 == 0 => format!("{}s", whole / 1_000),
            _ => format!("{milliseconds}ms"),
        }
    }

    const BARE: bool = false;
}

impl Setting for Size {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no size; write for example 100B, 512KiB or 8MiB");
        let (number, unit) = number_and_unit(text.trim()).ok_or_else(expected)?;
        let factor = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(expected()),
        };
        number.checked_mul(factor).map(Size).ok_or_else(expected)
    }

    fn render(&self) -> String {
        match self.0 {
            0 => "0B".to_owned(),
            bytes if bytes % (1 << 30) == 0 => format!("{}GiB", bytes >> 30),
            bytes if bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
            bytes if bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
            bytes => format!("{bytes}B"),
        }
    }

    const BARE: bool = false;
}

impl Setting for u64 {
    fn parse(text: &str) -> Result<Self, String> {
        text.trim()
            .parse()
            .map_err(|_| format!("`{text}` is no whole number"))
    }

    fn render(&self) -> String {
        self.to_string()
    }

    const BARE: bool = true;
}

impl Setting for f64 {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no number");
        let number: f64 = text.trim().parse().map_err(|_| expected())?;
        number.is_finite().then_some(number).ok_or_else(expected)
    }

    fn render(&self) -> String {
        self.to_string()
    }

    const BARE: bool = true;
}

/// Declares a setting that is one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Setting for $name {
            fn parse(text: &str) -> Result<Self, String> {
                match text.trim() {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is none of {}", [$($word),+].join(", "))),
                }
            }

            fn render(&self) -> String {
                match self { $(Self::$variant => $word),+ }.to_owned()
            }

            const BARE: bool = false;
        }
    };
}

words!(
    /// How raw v1 keys meet region boundaries; fixed when a cluster is made.
    ApiV1 {
        /// Raw and transactional v1 clients side by side; all boundaries are encodings.
        Mixed = "mixed",
        /// Raw v1 alone; boundaries may be plain keys.
        Raw = "raw",
    }
);

words!(
    /// Whether something is done.
    Switch {
        /// It is not.
        Off = "off",
        /// It is.
        On = "on",
    }
);

words!(
    /// The least important line that is logged.
    LogLevel {
        /// What stops the node or loses service.
        Error = "error",
        /// What an operator should look at.
        Warning = "warning",
        /// What happened.
        Info = "info",
        /// Everything.
        Debug = "debug",
    }
);

words!(
    /// How log lines are written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(
            <Duration as Setting>::parse("200ms"),
            Ok(Duration::from_millis(200))
        );
        assert_eq!(
            <Duration as Setting>::parse("5m"),
            Ok(Duration::from_secs(300))
        );
        for wrong in [
            "200",
            "",
            "ms",
            "-1s",
            "1.5s",
            "1 year",
            "99999999999999999h",
        ] {
            assert!(<Duration as Setting>::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_need_a_binary_unit() {
        assert_eq!(Size::parse("8MiB"), Ok(Size(8 << 20)));
        assert_eq!(Size::parse("100B"), Ok(Size(100)));
        for wrong in ["8", "8MB", "MiB", "-8MiB", "99999999999999GiB"] {
            assert!(Size::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        for text in ["0ms", "50ms", "1s", "90s", "5m"] {
            let value = <Duration as Setting>::parse(text).unwrap();
            assert_eq!(value.render(), text);
        }
        for text in ["0B", "7B", "3KiB", "8MiB", "2GiB"] {
            assert_eq!(Size::parse(text).unwrap().render(), text);
        }
        assert_eq!(ApiV1::parse("raw").unwrap().render(), "raw");
        assert!(ApiV1::parse("both").is_err());
    }
}
