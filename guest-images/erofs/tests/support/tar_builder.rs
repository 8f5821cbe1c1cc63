//! Tar streams made header by header, for what no tar program would write.

/// A tar stream under construction.
#[derive(Default, Clone)]
pub struct TarBuilder {
    bytes: Vec<u8>,
    /// Where the headers are, so that a test can damage them.
    pub headers: Vec<usize>,
}

/// The fields of one header; data and padding follow it as `data` says.
#[derive(Clone)]
pub struct Header<'a> {
    pub path: &'a [u8],
    pub type_flag: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub link: &'a [u8],
    pub device: (u32, u32),
    pub data: &'a [u8],
    /// The size to announce, if it is not that of the data.
    pub size: Option<u64>,
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            path: b"file",
            type_flag: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            link: b"",
            device: (0, 0),
            data: b"",
            size: None,
        }
    }
}

impl TarBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(mut self, header: &Header<'_>) -> Self {
        self.push(header);
        self
    }

    pub fn push(&mut self, header: &Header<'_>) {
        let size = header.size.unwrap_or(header.data.len() as u64);
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        if header.path.len() <= 100 {
            put(0, header.path);
        } else {
            self.push_extension(b'L', &[header.path, b"\0"].concat());
        }
        if header.link.len() <= 100 {
            put(157, header.link);
        } else {
            self.push_extension(b'K', &[header.link, b"\0"].concat());
        }
        put(100, format!("{:07o}\0", header.mode).as_bytes());
        put(108, format!("{:07o}\0", header.uid).as_bytes());
        put(116, format!("{:07o}\0", header.gid).as_bytes());
        put(124, &number(size));
        put(136, &number(header.mtime));
        put(156, &[header.type_flag]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", header.device.0).as_bytes());
        put(337, format!("{:07o}\0", header.device.1).as_bytes());
        fix_checksum(&mut block);
        self.headers.push(self.bytes.len());
        self.bytes.extend_from_slice(&block);
        self.push_data(header.data);
    }

    /// Adds a header of which the test decides every byte but the checksum.
    pub fn raw_header(mut self, mut block: [u8; 512]) -> Self {
        fix_checksum(&mut block);
        self.headers.push(self.bytes.len());
        self.bytes.extend_from_slice(&block);
        self
    }

    /// Adds bytes, padded to a whole block.
    pub fn push_data(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.add(&Header {
            path: path.as_bytes(),
            data,
            ..Header::default()
        })
    }

    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.add(&Header {
            path: path.as_bytes(),
            type_flag: b'5',
            mode,
            ..Header::default()
        })
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(&Header {
            path: path.as_bytes(),
            type_flag: b'2',
            link: target.as_bytes(),
            mode: 0o777,
            ..Header::default()
        })
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.add(&Header {
            path: path.as_bytes(),
            type_flag: b'1',
            link: target.as_bytes(),
            ..Header::default()
        })
    }

    pub fn char_device(self, path: &str, major: u32, minor: u32) -> Self {
        self.add(&Header {
            path: path.as_bytes(),
            type_flag: b'3',
            device: (major, minor),
            ..Header::default()
        })
    }

    /// Adds a PAX header for the entry after it.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key.as_bytes(), value))
            .collect();
        self.push_extension(b'x', &body);
        self
    }

    /// Adds a sparse file as GNU tar's own format has it: four segments in the
    /// header, 21 in each block after it.
    pub fn gnu_sparse(
        self,
        path: &str,
        real_size: u64,
        segments: &[(u64, u64)],
        data: &[u8],
    ) -> Self {
        let field = |(offset, length): &(u64, u64)| [number(*offset), number(*length)].concat();
        let (here, later) = segments.split_at(segments.len().min(4));
        let mut block = [0; 512];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(&number(data.len() as u64));
        block[136..148].copy_from_slice(&number(1_700_000_000));
        block[156] = b'S';
        block[257..265].copy_from_slice(b"ustar  \0");
        for (index, segment) in here.iter().enumerate() {
            block[386 + 24 * index..][..24].copy_from_slice(&field(segment));
        }
        block[482] = u8::from(!later.is_empty());
        block[483..495].copy_from_slice(&number(real_size));
        let mut tar = self.raw_header(block);
        let extensions = later.chunks(21);
        let count = extensions.len();
        for (index, part) in extensions.enumerate() {
            let mut extension = part.iter().flat_map(field).collect::<Vec<_>>();
            extension.resize(512, 0);
            extension[504] = u8::from(index + 1 < count);
            tar.push_data(&extension);
        }
        tar.push_data(data);
        tar
    }

    /// Adds an extended header: type `x`, `g`, `L` or `K`.
    pub fn extension(mut self, type_flag: u8, body: &[u8]) -> Self {
        self.push_extension(type_flag, body);
        self
    }

    fn push_extension(&mut self, type_flag: u8, data: &[u8]) {
        self.push(&Header {
            path: b"././@Extension",
            type_flag,
            data,
            ..Header::default()
        });
    }

    /// What there is, without the end of the archive.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

/// A 12-byte numeric field.
pub fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field.copy_from_slice(format!("{value:011o}\0").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

pub fn fix_checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}
