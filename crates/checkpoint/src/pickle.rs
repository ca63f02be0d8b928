//! Reads pickles without running anything.
//!
//! A pickle is a program for a stack machine, and a hostile one imports a function and calls it. This machine has no
//! functions: the few classes that PyTorch's files need are known by name and become plain values, and any other name
//! is an error before anything is done with it. What is allowed is what A1111's safe loader allows
//! (AUTOMATIC1111/stable-diffusion-webui, `modules/safe.py`, 1.10.1), and the other storages and element types of torch.
//!
//! Values live in one list and name each other by index, so that depth costs no stack and sharing costs no copies.

use std::{borrow::Cow, collections::HashMap};

/// Why a pickle is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// It imports something that no checkpoint needs; nothing of it was run.
    #[error("it wants to import `{module}.{name}`, which no checkpoint needs: refused, nothing was run")]
    Import {
        /// The module.
        module: String,
        /// The class or function.
        name: String,
    },
    /// It calls something that is no class of the known ones.
    #[error("it calls {what} at byte {at}, expected a known class: refused, nothing was run")]
    Call {
        /// The kind of value that is called.
        what: &'static str,
        /// Bytes from the start of the pickle.
        at: usize,
    },
    /// It ends in the middle of an instruction, or without its end mark.
    #[error("the pickle is cut short at byte {at}")]
    CutShort {
        /// Bytes from the start of the pickle.
        at: usize,
    },
    /// An instruction that does not exist or has no place in a checkpoint.
    #[error("unknown pickle instruction 0x{op:02x} at byte {at}")]
    Unknown {
        /// The instruction.
        op: u8,
        /// Bytes from the start of the pickle.
        at: usize,
    },
    /// An instruction that finds something else than it needs.
    #[error("the pickle instruction `{op}` at byte {at} has no {needs}")]
    Needs {
        /// The instruction.
        op: char,
        /// What it needs.
        needs: &'static str,
        /// Bytes from the start of the pickle.
        at: usize,
    },
    /// Text that is not UTF-8.
    #[error("text that is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Bytes from the start of the pickle.
        at: usize,
    },
    /// A number that is none.
    #[error("`{found}` at byte {at} is no number")]
    NotANumber {
        /// What is there.
        found: String,
        /// Bytes from the start of the pickle.
        at: usize,
    },
    /// More values than any checkpoint has.
    #[error("the pickle has more than {limit} values")]
    TooLarge {
        /// The largest number of values that is read.
        limit: usize,
    },
    /// A tensor or storage whose description makes no sense.
    #[error("the {what} described before byte {at} has {fault}")]
    Malformed {
        /// `tensor` or `storage`.
        what: &'static str,
        /// What is wrong with it.
        fault: &'static str,
        /// Bytes from the start of the pickle.
        at: usize,
    },
}

/// The result of unpickling.
pub type Result<T, E = PickleError> = std::result::Result<T, E>;

/// A value, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A number of up to 64 bits.
    Int(i64),
    /// A longer one: little-endian, two's complement.
    Long(&'a [u8]),
    /// A float.
    Float(f64),
    /// Text.
    Str(Cow<'a, str>),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A list, a set, or the arguments of an inert object.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A dictionary, in the order in which it was filled.
    Dict(Vec<(Id, Id)>),
    /// A known class or function.
    Class(Class),
    /// An object of a known class of which nothing is kept.
    Inert(Class),
    /// Elements somewhere else in the file.
    Storage(Box<Storage>),
    /// A view of a storage.
    Tensor(Box<Tensor>),
}

/// Elements, of which the pickle says the name and number only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The name under which the file holds them.
    pub key: String,
    /// Their type.
    pub dtype: safetensors::Dtype,
    /// How many.
    pub numel: usize,
}

/// A tensor over a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The storage.
    pub storage: Id,
    /// Elements before the first one.
    pub offset: usize,
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// Elements from one to the next along each axis.
    pub strides: Vec<usize>,
}

/// What the known classes are to this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `OrderedDict` and its like: a dictionary.
    Dict,
    /// A set: a list.
    Set,
    /// `torch._utils._rebuild_tensor_v2` and the older one.
    Tensor,
    /// `torch._utils._rebuild_parameter`: its first argument.
    Parameter,
    /// `ParameterDict`: the dictionary that it has under `_parameters`.
    Parameters,
    /// A class of storages, by the type of their elements.
    Storage(safetensors::Dtype),
    /// Anything else: an object without content.
    Other,
}

/// The names that may be imported.
fn class(module: &str, name: &str) -> Option<Class> {
    use safetensors::Dtype;
    let storage = |dtype| Some(Class::Storage(dtype));
    match (module, name) {
        ("collections", "OrderedDict") => Some(Class::Dict),
        ("__builtin__" | "builtins", "set") => Some(Class::Set),
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Some(Class::Tensor),
        ("torch._utils", "_rebuild_parameter") => Some(Class::Parameter),
        ("torch.nn.modules.container", "ParameterDict") => Some(Class::Parameters),
        ("torch", "DoubleStorage") => storage(Dtype::F64),
        ("torch", "FloatStorage") => storage(Dtype::F32),
        ("torch", "HalfStorage") => storage(Dtype::F16),
        ("torch", "BFloat16Storage") => storage(Dtype::BF16),
        ("torch", "LongStorage") => storage(Dtype::I64),
        ("torch", "IntStorage") => storage(Dtype::I32),
        ("torch", "ShortStorage") => storage(Dtype::I16),
        ("torch", "CharStorage") => storage(Dtype::I8),
        ("torch", "ByteStorage") => storage(Dtype::U8),
        ("torch", "BoolStorage") => storage(Dtype::BOOL),
        ("torch", "float64" | "float32" | "float16" | "bfloat16" | "int64" | "int32" | "Size")
        | ("torch._utils", "_rebuild_device_tensor_from_numpy")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("numpy", "dtype" | "ndarray")
        | ("_codecs", "encode")
        | ("pytorch_lightning.callbacks", "model_checkpoint")
        | ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") => Some(Class::Other),
        _ => None,
    }
}

/// A pickle that has been read: its values, and which one is the whole.
#[derive(Debug)]
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    /// Bytes that it took; others may follow.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the start of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine {
            bytes,
            at: 0,
            op_at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
        };
        let root = machine.run()?;
        Ok(Self { nodes: machine.nodes, root, length: machine.at })
    }

    /// The whole.
    pub fn root(&self) -> &Node<'a> {
        self.node(self.root)
    }

    /// All values, in the order in which they came.
    pub fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter()
    }

    /// What a value is.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }
}

/// Weights have four.
const AXES_MAX: usize = 8;

/// The full Stable Diffusion 1.5 with EMA has some 50,000.
const NODES_MAX: usize = 1 << 23;

/// The stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the instruction in hand starts, for errors.
    op_at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack that were marked.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Pairs that were copied from one dictionary into another.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id> {
        loop {
            self.op_at = self.at;
            match self.byte()? {
                b'.' => return self.pop('.'),
                op => self.step(op)?,
            }
        }
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            // Protocol and frames: nothing to do.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop_or_mark(),
            b'1' => self.popped('1').map(drop),
            b'2' => {
                let top = self.top('2')?;
                self.stack.push(top);
                Ok(())
            }
            b'p' | b'q' | b'r' | 0x94 => self.put(op),
            b'g' | b'h' | b'j' => self.get(op),
            b'c' | 0x93 => self.global(op),
            b'R' | 0x81 => self.call(op),
            b'i' | b'o' => self.old_call(op),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            b'a' | b'e' | 0x90 => self.append(op),
            b's' | b'u' => self.set_items(op),
            b']' | b'l' | b')' | b't' | 0x85..=0x87 | b'}' | b'd' | 0x8f | 0x91 => self.container(op),
            _ => self.constant(op),
        }
    }

    /// Numbers, text, bytes.
    fn constant(&mut self, op: u8) -> Result<()> {
        let node = match op {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            b'I' | b'L' | b'F' => self.decimal(op)?,
            0x8a => {
                let n = self.byte()? as usize;
                long(self.take(n)?)
            }
            0x8b => {
                let n = self.length4()?;
                long(self.take(n)?)
            }
            b'X' | 0x8c | 0x8d => {
                let n = match op {
                    b'X' => self.length4()?,
                    0x8c => self.byte()? as usize,
                    _ => self.length8()?,
                };
                Node::Str(self.text(n)?.into())
            }
            // Python 2's strings are text or bytes.
            b'T' | b'U' => {
                let n = if op == b'T' { self.length4()? } else { self.byte()? as usize };
                let bytes = self.take(n)?;
                std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), |text| Node::Str(text.into()))
            }
            b'S' | b'V' => self.quoted(op)?,
            b'B' | b'C' | 0x8e | 0x96 => {
                let n = match op {
                    b'B' => self.length4()?,
                    b'C' => self.byte()? as usize,
                    _ => self.length8()?,
                };
                Node::Bytes(self.take(n)?)
            }
            op => return Err(PickleError::Unknown { op, at: self.op_at }),
        };
        self.push(node)
    }

    /// Containers that start empty, or with what is above the mark.
    fn container(&mut self, op: u8) -> Result<()> {
        let node = match op {
            b']' | 0x8f => Node::List(Vec::new()),
            b'l' | 0x91 => Node::List(self.popped(char::from(op))?),
            b')' => Node::Tuple(Vec::new()),
            b't' => Node::Tuple(self.popped('t')?),
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let start = self.stack.len().checked_sub(n).filter(|start| *start >= self.floor());
                let start = start.ok_or_else(|| self.needs('t', "items"))?;
                Node::Tuple(self.stack.split_off(start))
            }
            b'}' => Node::Dict(Vec::new()),
            _ => {
                let items = self.popped('d')?;
                Node::Dict(self.pairs('d', &items)?)
            }
        };
        self.push(node)
    }

    fn put(&mut self, op: u8) -> Result<()> {
        let index = match op {
            b'p' => self.line_number()?,
            b'q' => u32::from(self.byte()?),
            b'r' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        let top = self.top('q')?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn get(&mut self, op: u8) -> Result<()> {
        let index = match op {
            b'g' => self.line_number()?,
            b'h' => u32::from(self.byte()?),
            _ => u32::from_le_bytes(self.array()?),
        };
        let id = *self.memo.get(&index).ok_or_else(|| self.needs('h', "such value"))?;
        self.stack.push(id);
        Ok(())
    }

    /// The only place where a name can come in.
    fn global(&mut self, op: u8) -> Result<()> {
        let (module, name) = if op == b'c' {
            (self.line()?.to_owned(), self.line()?.to_owned())
        } else {
            let (name, module) = (self.pop('c')?, self.pop('c')?);
            let text = |id: Id| match &self.nodes[id.0 as usize] {
                Node::Str(text) => Ok(text.to_string()),
                _ => Err(self.needs('c', "name")),
            };
            (text(module)?, text(name)?)
        };
        match class(&module, &name) {
            Some(class) => self.push(Node::Class(class)),
            None => Err(PickleError::Import { module, name }),
        }
    }

    /// `R`, a call, and 0x81, a new object.
    fn call(&mut self, op: u8) -> Result<()> {
        let (arguments, callee) = (self.pop('R')?, self.pop('R')?);
        let Node::Tuple(arguments) = self.get_node(arguments) else {
            return Err(self.needs(char::from(op), "arguments"));
        };
        let arguments = arguments[..arguments.len().min(4)].to_vec();
        self.make(callee, &arguments)
    }

    /// Calls of protocol 0: `i` names the class itself, `o` has it first above the mark.
    fn old_call(&mut self, op: u8) -> Result<()> {
        if op == b'i' {
            let arguments = self.popped('i')?;
            self.global(b'c')?;
            let class = self.pop('i')?;
            return self.make(class, &arguments);
        }
        let items = self.popped('o')?;
        let (class, arguments) = items.split_first().ok_or_else(|| self.needs('o', "class"))?;
        self.make(*class, arguments)
    }

    /// What a known class makes of its arguments.
    fn make(&mut self, callee: Id, arguments: &[Id]) -> Result<()> {
        let Node::Class(class) = *self.get_node(callee) else {
            return Err(PickleError::Call { what: kind(self.get_node(callee)), at: self.op_at });
        };
        let node = match class {
            Class::Dict => Node::Dict(self.dict_argument(arguments)?),
            Class::Set => Node::List(Vec::new()),
            Class::Tensor => self.tensor(arguments)?,
            Class::Parameter => {
                let first = *arguments.first().ok_or_else(|| self.needs('R', "arguments"))?;
                self.stack.push(first);
                return Ok(());
            }
            Class::Parameters | Class::Storage(_) | Class::Other => Node::Inert(class),
        };
        self.push(node)
    }

    /// `OrderedDict()`, or of a list of pairs.
    fn dict_argument(&mut self, arguments: &[Id]) -> Result<Vec<(Id, Id)>> {
        let Some(items) = arguments.first() else { return Ok(Vec::new()) };
        if let Node::Dict(items) = self.get_node(*items) {
            self.copied += items.len();
        } else if let Node::List(items) | Node::Tuple(items) = self.get_node(*items) {
            self.copied += items.len();
        }
        // Copies of copies of one large dictionary would fill the memory.
        if self.copied > self.bytes.len() {
            return Err(PickleError::TooLarge { limit: self.bytes.len() });
        }
        match self.get_node(*items) {
            Node::Dict(items) => Ok(items.clone()),
            Node::List(items) | Node::Tuple(items) => {
                let pair = |id: &Id| match self.get_node(*id) {
                    Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                    _ => Err(self.needs('R', "pairs")),
                };
                items.iter().map(pair).collect()
            }
            _ => Err(self.needs('R', "pairs")),
        }
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`.
    fn tensor(&self, arguments: &[Id]) -> Result<Node<'a>> {
        let malformed = |fault| PickleError::Malformed { what: "tensor", fault, at: self.op_at };
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(malformed("too few arguments"));
        };
        if !matches!(self.get_node(*storage), Node::Storage(_)) {
            return Err(malformed("no storage"));
        }
        let Node::Int(offset) = *self.get_node(*offset) else { return Err(malformed("no offset")) };
        let offset = usize::try_from(offset).map_err(|_| malformed("a negative offset"))?;
        let shape = self.sizes(*shape).ok_or_else(|| malformed("no shape"))?;
        let strides = self.sizes(*strides).ok_or_else(|| malformed("no strides"))?;
        if shape.len() != strides.len() {
            return Err(malformed("not as many strides as axes"));
        }
        Ok(Node::Tensor(Box::new(Tensor { storage: *storage, offset, shape, strides })))
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let (Node::Tuple(items) | Node::List(items)) = self.get_node(id) else { return None };
        if items.len() > AXES_MAX {
            return None;
        }
        let size = |id: &Id| match self.get_node(*id) {
            Node::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        items.iter().map(size).collect()
    }

    /// `('storage', class, key, location, numel, ...)`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop('Q')?;
        let malformed = |fault| PickleError::Malformed { what: "storage", fault, at: self.op_at };
        let Node::Tuple(parts) = self.get_node(id) else { return Err(malformed("no description")) };
        let parts = &parts[..parts.len().min(8)];
        let [tag, class, key, _location, numel, view @ ..] = parts else {
            return Err(malformed("too few parts"));
        };
        if !matches!(self.get_node(*tag), Node::Str(tag) if tag == "storage") {
            return Err(malformed("another tag than `storage`"));
        }
        let Node::Class(Class::Storage(dtype)) = *self.get_node(*class) else {
            return Err(malformed("no element type"));
        };
        let key = match self.get_node(*key) {
            Node::Str(key) => key.to_string(),
            Node::Int(key) => key.to_string(),
            _ => return Err(malformed("no name")),
        };
        let Node::Int(numel) = *self.get_node(*numel) else { return Err(malformed("no size")) };
        let numel = usize::try_from(numel).map_err(|_| malformed("a negative size"))?;
        // Files of before 0.4 may have storages that are views of others.
        if view.iter().any(|id| *self.get_node(*id) != Node::None) {
            return Err(malformed("a view of another storage"));
        }
        self.push(Node::Storage(Box::new(Storage { key, dtype, numel })))
    }

    /// State that is given to an object: of ours only a `ParameterDict` has any.
    fn build(&mut self) -> Result<()> {
        let state = self.pop('b')?;
        let object = self.top('b')?;
        if *self.get_node(object) == Node::Inert(Class::Parameters)
            && let Node::Dict(items) = self.get_node(state)
            && let Some((_, inner)) = items
                .iter()
                .find(|(key, _)| matches!(self.get_node(*key), Node::Str(key) if key == "_parameters"))
        {
            let items = self.dict_argument(&[*inner])?;
            self.nodes[object.0 as usize] = Node::Dict(items);
        }
        Ok(())
    }

    fn append(&mut self, op: u8) -> Result<()> {
        let items = if op == b'a' { vec![self.pop('a')?] } else { self.popped('e')? };
        let list = self.top(char::from(op))?;
        match &mut self.nodes[list.0 as usize] {
            Node::List(list) => list.extend(items),
            Node::Inert(_) => {}
            _ => return Err(self.needs('e', "list")),
        }
        Ok(())
    }

    fn set_items(&mut self, op: u8) -> Result<()> {
        let items = if op == b's' {
            let (value, key) = (self.pop('s')?, self.pop('s')?);
            vec![key, value]
        } else {
            self.popped('u')?
        };
        let pairs = self.pairs('u', &items)?;
        let dict = self.top(char::from(op))?;
        match &mut self.nodes[dict.0 as usize] {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Inert(_) => {}
            _ => return Err(self.needs('u', "dictionary")),
        }
        Ok(())
    }

    fn pairs(&self, op: char, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        let (pairs, rest) = items.as_chunks::<2>();
        match rest {
            [] => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
            _ => Err(self.needs(op, "value for every key")),
        }
    }

    fn get_node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    fn push(&mut self, node: Node<'a>) -> Result<()> {
        if self.nodes.len() >= NODES_MAX {
            return Err(PickleError::TooLarge { limit: NODES_MAX });
        }
        self.stack.push(Id(self.nodes.len() as u32));
        self.nodes.push(node);
        Ok(())
    }

    /// What is below the last mark is out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self, op: char) -> Result<Id> {
        match self.stack.len() > self.floor() {
            true => Ok(self.stack[self.stack.len() - 1]),
            false => Err(self.needs(op, "value")),
        }
    }

    fn pop(&mut self, op: char) -> Result<Id> {
        let top = self.top(op)?;
        self.stack.pop();
        Ok(top)
    }

    /// Everything above the last mark, and the mark.
    fn popped(&mut self, op: char) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.needs(op, "mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_or_mark(&mut self) -> Result<()> {
        if self.stack.len() == self.floor() && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop('0').map(drop)
    }

    fn needs(&self, op: char, needs: &'static str) -> PickleError {
        PickleError::Needs { op, needs, at: self.op_at }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or(PickleError::CutShort { at: self.bytes.len() })?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many were taken"))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn length4(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length8(&mut self) -> Result<usize> {
        let n = u64::from_le_bytes(self.array()?);
        usize::try_from(n).map_err(|_| PickleError::CutShort { at: self.bytes.len() })
    }

    fn text(&mut self, n: usize) -> Result<&'a str> {
        let at = self.at;
        std::str::from_utf8(self.take(n)?).map_err(|_| PickleError::NotUtf8 { at })
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|byte| *byte == b'\n');
        let n = n.ok_or(PickleError::CutShort { at: self.bytes.len() })?;
        let line = self.text(n)?;
        self.at += 1;
        Ok(line)
    }

    fn line_number(&mut self) -> Result<u32> {
        let line = self.line()?;
        line.parse().map_err(|_| PickleError::NotANumber { found: line.to_owned(), at: self.op_at })
    }

    /// Numbers of protocol 0, as text.
    fn decimal(&mut self, op: u8) -> Result<Node<'a>> {
        let line = self.line()?;
        let node = match (op, line) {
            (b'I', "00") => Some(Node::Bool(false)),
            (b'I', "01") => Some(Node::Bool(true)),
            (b'F', _) => line.parse().ok().map(Node::Float),
            _ => line.trim_end_matches('L').parse().ok().map(Node::Int),
        };
        node.ok_or_else(|| PickleError::NotANumber { found: line.to_owned(), at: self.op_at })
    }

    /// Text of protocol 0. Escapes stay as they are: names of tensors have none.
    fn quoted(&mut self, op: u8) -> Result<Node<'a>> {
        let line = self.line()?;
        if op == b'V' {
            return Ok(Node::Str(line.into()));
        }
        let inner = ['\'', '"'].iter().find_map(|q| line.strip_prefix(*q)?.strip_suffix(*q));
        inner.map(|inner| Node::Str(inner.into())).ok_or_else(|| self.needs('S', "quotes"))
    }
}

fn kind(node: &Node) -> &'static str {
    match node {
        Node::None => "None",
        Node::Bool(_) | Node::Int(_) | Node::Long(_) | Node::Float(_) => "a number",
        Node::Str(_) => "text",
        Node::Bytes(_) => "bytes",
        Node::List(_) => "a list",
        Node::Tuple(_) => "a tuple",
        Node::Dict(_) => "a dictionary",
        Node::Class(_) | Node::Inert(_) => "an object",
        Node::Storage(_) => "a storage",
        Node::Tensor(_) => "a tensor",
    }
}

/// Little-endian, two's complement, of any length.
fn long(bytes: &[u8]) -> Node<'_> {
    if bytes.len() > 8 {
        return Node::Long(bytes);
    }
    let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
    let mut all = [fill; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(all))
}
