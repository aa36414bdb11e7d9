//! Archives that no honest program writes, byte by byte.

use std::io::Write;

/// A tar under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    /// An entry of type `kind`.
    pub fn entry(self, kind: u8, name: &str, link: &str, content: &[u8]) -> Archive {
        self.entry_with(kind, name, link, content, |_| {})
    }

    /// An entry whose header `change` may spoil before the checksum is made.
    pub fn entry_with(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        content: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Archive {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000755");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000001");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &str) -> Archive {
        self.entry(b'0', name, "", content.as_bytes())
    }

    pub fn directory(self, name: &str) -> Archive {
        self.entry(b'5', name, "", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Archive {
        self.entry(b'2', name, target, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Archive {
        self.entry(b'1', name, target, b"")
    }

    pub fn device(self, name: &str, major: u32, minor: u32) -> Archive {
        self.entry_with(b'3', name, "", b"", |header| {
            header[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
            header[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
        })
    }

    /// A pax header for the next entry.
    pub fn pax(self, records: &[(&str, &str)]) -> Archive {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (rest + 1..).find(|length| *length == rest + length.to_string().len()).expect("some length fits");
            writeln!(content, "{length} {key}={value}").expect("memory takes everything");
        }
        self.entry(b'x', "PaxHeaders/x", "", &content)
    }

    /// The archive, ended.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// The archive, cut off here.
    pub fn cut(self) -> Vec<u8> {
        self.bytes
    }
}
