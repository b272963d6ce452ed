/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Which failsafe rules that name a cgroup hold for a socket. */
#ifndef AEGIS_NARROW_H
#define AEGIS_NARROW_H

#include "identity.h"

/* Bit i: the socket is inside the cgroup that failsafe rule i names. With any helper that names an ancestor by
 * its level, as DEEPEST_MAPPED. */
#define NARROWED(ancestor_at) ({ \
	struct failsafe_list *list_; \
	__u32 bits_ = 0, zero_ = 0, i_; \
	list_ = bpf_map_lookup_elem(&failsafes, &zero_); \
	for (i_ = 0; list_ && list_->narrowed && i_ < MAX_FAILSAFE; i_++) { \
		const struct failsafe_rule *rule_ = &list_->rules[i_]; \
		__u32 level_ = rule_->level; \
		__u64 id_, *name_; \
		if (!rule_->cgroup) \
			continue; \
		id_ = ancestor_at; \
		name_ = id_ ? bpf_map_lookup_elem(&failsafe_cgroups, &id_) : 0; \
		if (name_ && *name_ == rule_->cgroup) \
			bits_ |= 1U << i_; \
	} \
	bits_; })

__noinline int narrow_bits(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk || !(sk = bpf_sk_fullsock(sk)))
		return 0;
	return NARROWED(bpf_sk_ancestor_cgroup_id(sk, level_));
}

#endif
