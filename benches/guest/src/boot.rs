//! From the PVH entry (32-bit, paging off) to ring 3 in long mode, and the ring-0 stubs that stay behind.
//!
//! A software KVM emulates ring 0 one instruction at a time, so the way to ring 3 is as short as the
//! architecture allows: every table is initialised at link time, and the frames that `iretq` takes lie ready in
//! memory. The very first thing is one byte on COM1, which is what start-up benchmarks wait for.

use core::arch::global_asm;

/// Selector of the ring-0 code segment.
pub const KERNEL_CODE: u16 = 0x08;

/// Number of exception vectors.
pub const EXCEPTIONS: usize = 32;

/// Bytes between two stubs of the same table.
pub const STUB_BYTES: usize = 32;

/// What r10 holds when `ud2` is a call of a service.
pub const SERVICE_MAGIC: u32 = 0x5e7_41ce;

// PVH start-up (Xen's x86/HVM direct boot ABI) and the tables it loads.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4                         # name size
    .long 8                         # descriptor size
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .section .boot.text, "ax"
    .code32
    .global pvh_start
pvh_start:
    mov edx, 0x3f8
    mov al, 's'                     # of "skerry-payload: hello"; ring 3 prints the rest
    out dx, al
    mov eax, 0x620                  # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER
    mov eax, 0x100                  # LME
    xor edx, edx
    wrmsr
    mov eax, 0x80000033             # PG, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                      # ljmp 0x08:enter_ring3
    .long enter_ring3
    .word 0x08

    .code64
enter_ring3:
    lidt [idt_pointer]
    mov eax, 0x28
    ltr ax
    mov esp, offset user_frame
    iretq

    # Native from here on.
ring3_start:
    mov esi, ebx
    mov edi, offset bss_start
    mov ecx, offset bss_end
    sub ecx, edi
    xor eax, eax
    rep stosb
    mov qword ptr [rip + tss + 4], offset ring0_stack_end
    mov word ptr [rip + tss + 102], 104
    mov byte ptr [rip + tss + 104 + 8192], 0xff
    mov edi, esi
    call {main}
    ud2

ring3_exception:
    call {exception}
    ud2

    .section .boot.tables, "aw"
    # 2 MiB pages for the low 4 GiB: present, writable, user, accessed, dirty, large.
    .balign 4096
    .global pml4
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x0027
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0xe7
    .set page, page + 1
    .endr

    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 ring 0, 64-bit code
    .quad 0x00cf93000000ffff        # 0x10 ring 0, data
    .quad 0x00cff3000000ffff        # 0x18 ring 3, data
    .quad 0x00affb000000ffff        # 0x20 ring 3, 64-bit code
    .word 104 + 8192                # 0x28 TSS
    .word tss_base_0_15
    .byte tss_base_16_23, 0x89, 0, tss_base_24_31
    .quad 0
    .quad 0x00cf9b000000ffff        # 0x38 ring 0, 32-bit code (application processors)
gdt_end:
    .balign 16
    .word 0, 0, 0
    .global gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 16
    .word 0, 0, 0
    .global idt_pointer
idt_pointer:
    .word 4095
    .quad idt

    .balign 16
user_frame:
    .quad ring3_start
    .quad 0x23
    .quad 0x3002                    # IOPL 3, interrupts off
    .quad user_stack_end
    .quad 0x1b
exception_frame:
    .quad ring3_exception
    .quad 0x23
    .quad 0x3002
    .quad exception_stack_end
    .quad 0x1b

    # RSP0, and an I/O permission map that allows every port. IOPL 3 does so too, but a software KVM that runs
    # ring 3 natively loses it at the first exit.
    .section .bss
    .balign 128
    .global tss
tss:
    .skip 104 + 8192 + 1

    .section .noinit, "aw", @nobits
    .balign 4096
ring0_stack:
    .skip 4096
ring0_stack_end:
exception_stack:
    .skip 16384
exception_stack_end:
user_stack:
    .skip 1048576
user_stack_end:
    "#,
    main = sym crate::ring3_main,
    exception = sym crate::interrupts::ring3_exception,
);

// Exceptions: note what happened, go on in ring 3 with the report. A #GP of the MSR services is an answer.
global_asm!(
    r#"
    .section .boot.text, "ax"
    .code64
    .balign 32
    .global exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 32
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp exception_common
    .set vector, vector + 1
    .endr
    .balign 32
exception_common:
    cmp dword ptr [rsp], 13
    jne 1f
    cmp qword ptr [rsp + 16], offset service_wrmsr
    je 2f
    cmp qword ptr [rsp + 16], offset service_rdmsr
    je 2f
1:
    pop qword ptr [rip + exception_record]
    pop qword ptr [rip + exception_record + 8]
    pop qword ptr [rip + exception_record + 16]
    mov rax, [rsp + 16]
    mov [rip + exception_record + 24], rax
    mov rax, cr2
    mov [rip + exception_record + 32], rax
    mov esp, offset exception_frame
    iretq
2:
    add rsp, 16
    mov qword ptr [rsp], offset service_msr_refused
    iretq

    .section .bss
    .balign 16
    .global exception_record
exception_record:
    .skip 40
    .global irq_counters
    .balign 64
irq_counters:
    .skip 1024
    .balign 16
    .global idt
idt:
    .skip 4096
    "#
);

// Interrupts: count and acknowledge, nothing else. One table of stubs for each way to reach the LAPIC.
global_asm!(
    r#"
    .section .boot.text, "ax"
    .code64
    .balign 32
    .global irq_stubs_x2apic
irq_stubs_x2apic:
    .set vector, 0
    .rept 256
    .balign 32
    inc dword ptr [rip + irq_counters + 4 * vector]
    push rax
    push rcx
    push rdx
    mov ecx, 0x80b                  # EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
    .set vector, vector + 1
    .endr

    .balign 32
    .global irq_stubs_xapic
irq_stubs_xapic:
    .set vector, 0
    .rept 256
    .balign 32
    inc dword ptr [rip + irq_counters + 4 * vector]
    push rax
    mov eax, 0xfee000b0             # EOI
    mov dword ptr [rax], 0
    pop rax
    iretq
    .set vector, vector + 1
    .endr
    "#
);

// Services: what ring 3 cannot do itself, reached by `ud2` with the service's address in r9 and a magic number in
// r10. A software KVM delivers neither SYSCALL nor software interrupts of ring 3, but every KVM delivers #UD.
global_asm!(
    r#"
    .section .boot.text, "ax"
    .code64
    .balign 32
    .global service_entry
service_entry:
    cmp r10d, {magic}
    jne exception_stubs + 6 * 32
    add qword ptr [rsp], 2          # past the ud2
    xor r10d, r10d
    jmp r9
    .balign 32
    .global service_stubs
service_stubs:
    # 0: wrmsr(ecx, edx:eax) -> r8 = 0 or 1 when refused
    .balign 32
service_wrmsr:
    wrmsr
    xor r8d, r8d
    iretq
    # 1: rdmsr(ecx) -> edx:eax, r8 as above
    .balign 32
service_rdmsr:
    rdmsr
    xor r8d, r8d
    iretq
    # 2: interrupts on
    .balign 32
    or dword ptr [rsp + 16], 0x200
    iretq
    # 3: print rcx (at most 16) bytes at rsi on COM1
    .balign 32
    jmp service_print
    # 4: triple fault
    .balign 32
    push 0
    push 0
    lidt [rsp]
    ud2
    # 5: forget the TLB
    .balign 32
    mov rax, cr3
    mov cr3, rax
    iretq
    # 6: halt for ever
    .balign 32
1:
    cli
    hlt
    jmp 1b

    .balign 32
service_msr_refused:
    mov r8d, 1
    iretq
service_print:
    mov edx, 0x3fd
    mov edi, 100000
1:
    in al, dx
    test al, 0x20                   # transmitter holding register empty
    jnz 2f
    dec edi
    jnz 1b
2:
    mov edx, 0x3f8
    rep outsb
    iretq
    "#,
    magic = const SERVICE_MAGIC,
);

// Application processors: from real mode to long mode, one at a time; each leaves its APIC ID and halts.
global_asm!(
    r#"
    .section .rodata.trampoline, "a"
    .global trampoline
    .global trampoline_end
    .code16
trampoline:
    .byte 0x2e, 0x66, 0x0f, 0x01, 0x16      # lgdt cs:[gdt copy], 32-bit base
    .word trampoline_gdt - trampoline
    mov eax, 1
    mov cr0, eax
    .byte 0x66, 0xea                # ljmp 0x38:processor_start
    .long processor_start
    .word 0x38
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .section .boot.text, "ax"
    .code32
processor_start:
    mov eax, 0x620
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, 0x100
    xor edx, edx
    wrmsr
    mov eax, 0x80000033
    mov cr0, eax
    .byte 0xea
    .long processor_long
    .word 0x08
    .code64
processor_long:
    mov eax, 1
    cpuid
    shr ebx, 24
    mov [rip + processor_id], ebx
    inc dword ptr [rip + processors_started]
1:
    cli
    hlt
    jmp 1b

    .section .bss
    .balign 4
    .global processor_id
processor_id:
    .skip 4
    .global processors_started
processors_started:
    .skip 4
    "#
);

// What the compiler calls for moving memory; string instructions are native in ring 3.
global_asm!(
    r#"
    .section .text.memory, "ax"
    .code64
    .global memcpy
    .global memmove
    .global memset
    .global memcmp
    .global bcmp
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx                    # unsigned: below means that the end of src lies in dst
    jae memcpy
    mov rax, rdi
    mov rcx, rdx
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
memcmp:
bcmp:
    xor ecx, ecx
1:
    cmp rcx, rdx
    je 2f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    jz 1b
    ret
2:
    xor eax, eax
    ret
    "#
);

unsafe extern "C" {
    /// First of 32 exception stubs.
    pub static exception_stubs: u8;
    /// First of 256 interrupt stubs that end with an x2APIC EOI.
    pub static irq_stubs_x2apic: u8;
    /// First of 256 interrupt stubs that end with an xAPIC EOI.
    pub static irq_stubs_xapic: u8;
    /// The handler of #UD: a service call or an exception.
    pub static service_entry: u8;
    /// First of the service stubs, in the order of [`crate::interrupts::Service`].
    pub static service_stubs: u8;
    /// Vector, error code, RIP, RSP and CR2 of the exception that ended the program.
    pub static exception_record: [u64; 5];
    /// Real-mode code that application processors start with, to be copied to a page below 1 MiB.
    pub static trampoline: u8;
    /// Its end.
    pub static trampoline_end: u8;
    /// APIC ID of the processor that started last, by its own CPUID.
    pub static processor_id: core::sync::atomic::AtomicU32;
    /// How many application processors have started, ever.
    pub static processors_started: core::sync::atomic::AtomicU32;
    /// End of the payload's image, stacks included.
    pub static payload_end: u8;
}
