/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Whose socket it is, and who began its connection. */
#ifndef AEGIS_IDENTITY_H
#define AEGIS_IDENTITY_H

#include <bpf/bpf_core_read.h>
#include "kernel_types.h"
#include "report.h"

#define PASS 1
#define DROP 0

#define S_ESTABLISHED 1
#define S_SYN_SENT 2
#define S_SYN_RECV 3
#define S_CLOSE 7
#define S_CLOSE_WAIT 8
#define S_LISTEN 10

static __always_inline struct control *control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&controls, &zero);
}

static __always_inline __u32 epoch_of(const struct control *ctl)
{
	return ctl->epoch + ctl->mkdirs;
}

/* From the top to the deepest mapped cgroup, with any helper that names an ancestor by its level. What lies
 * beyond the bound belongs to what was found above it: a service that digs deep stays itself. */
#define DEEPEST_MAPPED(ancestor_at) ({ \
	__u32 slot_ = SLOT_NONE, level_; \
	for (level_ = 0; level_ <= MAX_DEPTH; level_++) { \
		__u64 id_ = ancestor_at; \
		__u32 *mapped_; \
		if (!id_) \
			break; \
		if (level_ == MAX_DEPTH) { \
			count(0, SLOT_NONE, C_TOO_DEEP); \
			break; \
		} \
		mapped_ = bpf_map_lookup_elem(&cgroups, &id_); \
		if (mapped_) \
			slot_ = *mapped_; \
	} \
	slot_ < SLOT_ROWS ? slot_ : SLOT_NONE; })

/* A change of mapping voids the caches but not the knowledge that a flow was live. */
static __always_inline void give_slot(struct state *st, __u32 slot, __u32 epoch)
{
	__u64 stamp = st->stamp;

	if (stamp)
		st->stamp = stamp | 1ULL << W_BITS;
	st->candidate = 0;
	st->slot = slot;
	st->epoch = epoch;
}

/* A socket may have an option set while its first packet is counted: neither may lose what the other notes.
 * The kernel has no atomic operation on bytes; the marks are the highest byte of a little-endian word. */
#define MARKS_WORD __builtin_offsetof(struct state, peer_port)
_Static_assert(MARKS_WORD % 4 == 0 && __builtin_offsetof(struct state, marks) == MARKS_WORD + 3, "marks");

static __always_inline void mark(struct state *st, __u32 bits)
{
	__sync_fetch_and_or((__u32 *)((void *)st + MARKS_WORD), bits << 24);
}

#define SOCK_BINDADDR_LOCK 4
#define SOCK_BINDPORT_LOCK 8

/* Of sk_userlocks: an accepted connection never has the lock of a bound port, so that one who calls from a
 * port on which they also listen is not taken for the one who was called. */
static __always_inline int is_bound(const struct sock *sk, __u32 lock)
{
	return sk && BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & lock;
}

static __always_inline void record(struct state *st, __u8 initiator, const struct packet *p)
{
	st->peer[0] = p->peer[0];
	st->peer[1] = p->peer[1];
	st->peer[2] = p->peer[2];
	st->peer[3] = p->peer[3];
	st->peer_port = p->peer_port;
	st->initiator = initiator;
}

static __always_inline int same_peer(const struct state *st, const struct packet *p)
{
	return st->peer_port == p->peer_port && st->peer[3] == p->peer[3] && st->peer[2] == p->peer[2] &&
	       st->peer[1] == p->peer[1] && st->peer[0] == p->peer[0];
}

static __always_inline int is_live_state(__u32 state)
{
	return state != S_SYN_SENT && state != S_SYN_RECV && state != S_CLOSE && state != S_LISTEN && state != 12;
}

#endif
