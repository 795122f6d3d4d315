//! Protobuf messages as trees, to change any field of a package without knowing its schema.

/// A protobuf message as a list of fields, each a number or bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree(pub Vec<(u32, Node)>);

/// A field's content.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Tree {
    pub fn parse(bytes: &[u8]) -> Tree {
        let mut at = 0;
        let varint = |at: &mut usize| {
            let (mut v, mut shift) = (0u64, 0);
            loop {
                let b = bytes[*at];
                *at += 1;
                v |= u64::from(b & 0x7f) << shift;
                shift += 7;
                if b < 0x80 {
                    return v;
                }
            }
        };
        let mut fields = Vec::new();
        while at < bytes.len() {
            let tag = varint(&mut at);
            let node = match tag & 7 {
                0 => Node::Number(varint(&mut at)),
                2 => {
                    let n = varint(&mut at) as usize;
                    at += n;
                    Node::Bytes(bytes[at - n..at].to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.push(((tag >> 3) as u32, node));
        }
        Tree(fields)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let varint = |out: &mut Vec<u8>, mut v: u64| {
            while v >= 0x80 {
                out.push(v as u8 | 0x80);
                v >>= 7;
            }
            out.push(v as u8);
        };
        for (number, node) in &self.0 {
            match node {
                Node::Number(v) => {
                    varint(&mut out, u64::from(*number) << 3);
                    varint(&mut out, *v);
                }
                Node::Bytes(b) => {
                    varint(&mut out, u64::from(*number) << 3 | 2);
                    varint(&mut out, b.len() as u64);
                    out.extend_from_slice(b);
                }
            }
        }
        out
    }

    /// The first field of that number, as a string.
    pub fn text(&self, number: u32) -> String {
        match self.0.iter().find(|(n, _)| *n == number) {
            Some((_, Node::Bytes(b))) => String::from_utf8_lossy(b).into_owned(),
            _ => String::new(),
        }
    }

    /// Changes the first nested message of that number for which `which` holds.
    pub fn edit(&mut self, number: u32, which: impl Fn(&Tree) -> bool, change: impl FnOnce(&mut Tree)) {
        for (n, node) in &mut self.0 {
            let Node::Bytes(b) = node else { continue };
            if *n != number {
                continue;
            }
            let mut inner = Tree::parse(b);
            if which(&inner) {
                change(&mut inner);
                *b = inner.bytes();
                return;
            }
        }
        panic!("no field {number} fits");
    }

    /// Changes the first nested message of that number.
    pub fn enter(&mut self, number: u32, change: impl FnOnce(&mut Tree)) {
        self.edit(number, |_| true, change);
    }

    pub fn set(&mut self, number: u32, node: Node) {
        self.remove(number);
        self.0.push((number, node));
    }

    pub fn remove(&mut self, number: u32) {
        self.0.retain(|(n, _)| *n != number);
    }

    pub fn get(&self, number: u32) -> Node {
        self.0.iter().find(|(n, _)| *n == number).unwrap().1.clone()
    }
}

/// A string as a field's content.
pub fn text(s: &str) -> Node {
    Node::Bytes(s.as_bytes().to_vec())
}
