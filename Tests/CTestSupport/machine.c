// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <string.h>

static uint64_t load(struct machine *machine, uint64_t address, int size, int is_signed)
{
	uint64_t offset = address - (uint64_t)&machine->context;
	uint64_t value = 0;

	if (offset == offsetof(struct __sk_buff, data))
		return (uint64_t)machine->data;
	if (offset == offsetof(struct __sk_buff, data_end))
		return (uint64_t)machine->data_end;
	memcpy(&value, (void *)address, (size_t)size);
	if (is_signed)
		return size == 1   ? (uint64_t)(int8_t)value
		       : size == 2 ? (uint64_t)(int16_t)value
				   : (uint64_t)(int32_t)value;
	return value;
}

static int size_of(uint8_t code)
{
	switch (BPF_SIZE(code)) {
	case BPF_B:
		return 1;
	case BPF_H:
		return 2;
	case BPF_W:
		return 4;
	default:
		return 8;
	}
}

static uint64_t swap(uint64_t value, int32_t bits)
{
	return bits == 16   ? __builtin_bswap16((uint16_t)value)
	       : bits == 32 ? __builtin_bswap32((uint32_t)value)
			    : __builtin_bswap64(value);
}

static uint64_t alu(struct machine *machine, const struct bpf_insn *insn, uint64_t left,
		    uint64_t right)
{
	int is_wide = BPF_CLASS(insn->code) == BPF_ALU64;
	uint64_t mask = is_wide ? 63 : 31, result;

	if (!is_wide) {
		left = (uint32_t)left;
		right = (uint32_t)right;
	}
	switch (BPF_OP(insn->code)) {
	case BPF_ADD:
		result = left + right;
		break;
	case BPF_SUB:
		result = left - right;
		break;
	case BPF_MUL:
		result = left * right;
		break;
	case BPF_DIV:
		result = right ? left / right : 0;
		break;
	case BPF_MOD:
		result = right ? left % right : left;
		break;
	case BPF_OR:
		result = left | right;
		break;
	case BPF_AND:
		result = left & right;
		break;
	case BPF_XOR:
		result = left ^ right;
		break;
	case BPF_LSH:
		result = left << (right & mask);
		break;
	case BPF_RSH:
		result = left >> (right & mask);
		break;
	case BPF_ARSH:
		result = is_wide ? (uint64_t)((int64_t)left >> (right & mask))
				 : (uint32_t)((int32_t)left >> (right & mask));
		break;
	case BPF_NEG:
		result = -left;
		break;
	case BPF_MOV:
		result = right;
		if (insn->off)
			result = insn->off == 8	   ? (uint64_t)(int8_t)right
				 : insn->off == 16 ? (uint64_t)(int16_t)right
						   : (uint64_t)(int32_t)right;
		break;
	case BPF_END:
		/* To big-endian on a little-endian machine, or always (bswap). */
		if (is_wide || BPF_SRC(insn->code) == BPF_TO_BE)
			return swap(left, insn->imm);
		return insn->imm == 16 ? (uint16_t)left : insn->imm == 32 ? (uint32_t)left : left;
	default:
		machine->walk->failure = "an operation that is not known here";
		return 0;
	}
	return is_wide ? result : (uint32_t)result;
}

static int jumps(uint8_t code, uint64_t left, uint64_t right)
{
	int64_t a = (int64_t)left, b = (int64_t)right;

	if (BPF_CLASS(code) == BPF_JMP32) {
		left = (uint32_t)left;
		right = (uint32_t)right;
		a = (int32_t)left;
		b = (int32_t)right;
	}
	switch (BPF_OP(code)) {
	case BPF_JEQ:
		return left == right;
	case BPF_JNE:
		return left != right;
	case BPF_JGT:
		return left > right;
	case BPF_JGE:
		return left >= right;
	case BPF_JLT:
		return left < right;
	case BPF_JLE:
		return left <= right;
	case BPF_JSET:
		return (left & right) != 0;
	case BPF_JSGT:
		return a > b;
	case BPF_JSGE:
		return a >= b;
	case BPF_JSLT:
		return a < b;
	case BPF_JSLE:
		return a <= b;
	default:
		return 1; /* BPF_JA */
	}
}

static void atomic(struct machine *machine, const struct bpf_insn *insn, uint64_t *r)
{
	void *address = (void *)(r[insn->dst_reg] + (uint64_t)(int64_t)insn->off);
	int size = size_of(insn->code);
	uint64_t old = 0, value = r[insn->src_reg], new;

	memcpy(&old, address, (size_t)size);
	switch (insn->imm & ~BPF_FETCH) {
	case BPF_ADD:
		new = old + value;
		break;
	case BPF_OR:
		new = old | value;
		break;
	case BPF_AND:
		new = old &value;
		break;
	case BPF_XOR:
		new = old ^ value;
		break;
	case BPF_XCHG & ~BPF_FETCH:
		new = value;
		break;
	case BPF_CMPXCHG & ~BPF_FETCH:
		new = old == r[0] ? value : old;
		break;
	default:
		machine->walk->failure = "an atomic operation that is not known here";
		return;
	}
	memcpy(address, &new, (size_t)size);
	if ((insn->imm & ~BPF_FETCH) == (BPF_CMPXCHG & ~BPF_FETCH))
		r[0] = old;
	else if (insn->imm & BPF_FETCH)
		r[insn->src_reg] = old;
}

static uint64_t constant(struct machine *machine, const struct bpf_insn *insn)
{
	uint32_t zero = 0;
	uint64_t value;

	switch (insn->src_reg) {
	case 0:
		return (uint64_t)(uint32_t)insn[1].imm << 32 | (uint32_t)insn->imm;
	case BPF_PSEUDO_MAP_FD:
		return (uint64_t)insn->imm;
	case BPF_PSEUDO_MAP_VALUE:
		value = wgt_look_up(machine->program, insn->imm, &zero);
		return value ? value + (uint32_t)insn[1].imm : 0;
	default:
		return 0;
	}
}

/* One function, with the registers that its caller has given it. */
uint64_t wgt_run(struct machine *machine, size_t at, const uint64_t *arguments, int depth)
{
	uint64_t r[11] = {0};

	if (depth == FRAMES) {
		machine->walk->failure = "functions are nested too deep";
		return 0;
	}
	memcpy(r + 1, arguments + 1, 5 * sizeof(*r));
	r[10] = (uint64_t)(machine->stack[depth] + STACK / 8);
	while (!machine->walk->failure && at < machine->program->count) {
		const struct bpf_insn *insn = machine->program->insns + at++;
		uint64_t right = BPF_SRC(insn->code) == BPF_X ? r[insn->src_reg]
							      : (uint64_t)(int64_t)insn->imm;
		uint64_t address;

		if (++machine->walk->instructions > LONGEST) {
			machine->walk->failure = "it does not end";
			return 0;
		}
		switch (BPF_CLASS(insn->code)) {
		case BPF_ALU:
		case BPF_ALU64:
			r[insn->dst_reg] = alu(machine, insn, r[insn->dst_reg], right);
			break;
		case BPF_LDX:
			r[insn->dst_reg] =
				load(machine, r[insn->src_reg] + (uint64_t)(int64_t)insn->off,
				     size_of(insn->code), BPF_MODE(insn->code) == 0x80);
			break;
		case BPF_LD:
			r[insn->dst_reg] = constant(machine, insn);
			at++;
			break;
		case BPF_ST:
		case BPF_STX:
			if (BPF_CLASS(insn->code) == BPF_STX &&
			    BPF_MODE(insn->code) == BPF_ATOMIC) {
				atomic(machine, insn, r);
				break;
			}
			address = r[insn->dst_reg] + (uint64_t)(int64_t)insn->off;
			right = BPF_CLASS(insn->code) == BPF_STX ? r[insn->src_reg]
								 : (uint64_t)(int64_t)insn->imm;
			memcpy((void *)address, &right, (size_t)size_of(insn->code));
			break;
		case BPF_JMP:
		case BPF_JMP32:
			if (BPF_OP(insn->code) == BPF_EXIT)
				return r[0];
			if (BPF_OP(insn->code) != BPF_CALL) {
				if (jumps(insn->code, r[insn->dst_reg], right))
					at = at +
					     (size_t)(int64_t)(insn->code == (BPF_JMP32 | BPF_JA)
								       ? insn->imm
								       : insn->off);
				break;
			}
			if (insn->src_reg == BPF_PSEUDO_CALL) {
				r[0] = wgt_run(machine, at + (size_t)(int64_t)insn->imm, r,
					       depth + 1);
				break;
			}
			machine->walk->helpers++;
			/* Functions of the kernel (conntrack's) find nothing. */
			r[0] = insn->src_reg == BPF_PSEUDO_KFUNC_CALL
				       ? 0
				       : (uint64_t)wgt_helper(machine, insn->imm, r);
			break;
		}
	}
	if (!machine->walk->failure)
		machine->walk->failure = "it runs over its end";
	return 0;
}
