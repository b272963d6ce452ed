/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Which failsafe rules that name a cgroup hold for a socket. */
#ifndef AEGIS_NARROW_H
#define AEGIS_NARROW_H

#include "identity.h"

/* Bit i: the socket is inside the cgroup that failsafe rule i is narrowed to. */
struct narrowing {
	struct failsafe_list *list;
	struct bpf_sock *sk;
	__u32 bits;
};

static int narrow_step(__u32 i, struct narrowing *n)
{
	const struct failsafe_rule *r = &n->list->rules[i & (MAX_FAILSAFE - 1)];

	if (i >= n->list->count)
		return 1;
	if (r->cgroup) {
		__u64 id = bpf_sk_ancestor_cgroup_id(n->sk, r->level);
		__u64 *name = id ? bpf_map_lookup_elem(&failsafe_cgroups, &id) : 0;

		if (name && *name == r->cgroup)
			n->bits |= 1U << (i & 31);
	}
	return 0;
}

__noinline int narrow_bits(struct __sk_buff *skb)
{
	struct narrowing n = {};
	__u32 zero = 0;

	n.list = bpf_map_lookup_elem(&failsafes, &zero);
	n.sk = skb->sk;
	if (!n.list || !n.list->narrowed || !n.sk || !(n.sk = bpf_sk_fullsock(n.sk)))
		return 0;
	bpf_loop(MAX_FAILSAFE, narrow_step, &n, 0);
	return n.bits;
}

#endif
