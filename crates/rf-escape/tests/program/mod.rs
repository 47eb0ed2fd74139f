//! Programs whose first instructions are one system call: ELF files of some 200 bytes, put together here.
//!
//! No loader and no library runs before, so what such a call is refused was refused from the first instruction on.

/// Where the file is mapped (elf(5)); the usual place of programs that are linked statically.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// An argument of a system call.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Number(u64),
    /// The address of this text.
    Text(&'static str),
}

/// An ELF file for x86-64 that makes one call and ends with its errno: 0 where the call answered 0.
pub fn of_one_call(number: u32, arguments: &[Arg]) -> Vec<u8> {
    // `mov register, imm64` for rdi, rsi, rdx and r10.
    const MOVES: [[u8; 2]; 4] = [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba]];
    let mut end = vec![0xb8];
    end.extend(number.to_le_bytes()); // mov eax, number
    end.extend([0x0f, 0x05, 0x89, 0xc7, 0xf7, 0xdf]); // syscall; mov edi, eax; neg edi
    end.extend([0xb8, 231, 0, 0, 0, 0x0f, 0x05]); // mov eax, exit_group; syscall
    let texts = BASE + HEADERS + (arguments.len() * 10 + end.len()) as u64;
    let (mut code, mut data) = (Vec::new(), Vec::new());
    for (argument, load) in arguments.iter().zip(MOVES) {
        let value = match argument {
            Arg::Number(value) => *value,
            Arg::Text(text) => {
                let at = texts + data.len() as u64;
                data.extend_from_slice(text.as_bytes());
                data.push(0);
                at
            }
        };
        code.extend(load);
        code.extend(value.to_le_bytes());
    }
    code.extend(end);
    code.extend(data);

    let length = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_EXEC, EM_X86_64, version; the entry, where the program header is, no sections.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for number in [BASE + HEADERS, 64, 0] {
        file.extend(number.to_le_bytes());
    }
    // Flags; the sizes of this header and of the one program header; no sections.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable: the whole file.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for number in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(number.to_le_bytes());
    }
    file.extend(code);
    file
}
