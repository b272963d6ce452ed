/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What is written down when sockets, connections and cgroups come to be. */
#ifndef AEGIS_RECORD_H
#define AEGIS_RECORD_H

#include "flows.h"
#include "narrow.h"

/* In the socket's own record: a storage of its own would cost every connection an allocation, and every
 * packet a look-up in memory that nothing else has touched. */
static __always_inline void record_owner(struct state *st)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	st->pid = BPF_CORE_READ(task, tgid);
	st->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
}

/* The socket belongs to the service of the process that creates it, for its whole life. */
static __always_inline int on_create(struct bpf_sock *ctx)
{
	struct control *ctl = control();
	struct state *st;
	__u32 slot, zero = 0;

	if (!ctl)
		return PASS;
	slot = DEEPEST_MAPPED(bpf_get_current_ancestor_cgroup_id(level_));
	st = bpf_sk_storage_get(&states, ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (st) {
		give_slot(st, slot, epoch_of(ctl));
		st->narrow = NARROWED(bpf_get_current_ancestor_cgroup_id(level_));
		st->netns = bpf_get_netns_cookie(ctx);
	} else {
		count(0, slot, C_NO_STORAGE);
	}
	if (st && bpf_map_lookup_elem(&accounts, &zero))
		record_owner(st);
	return PASS;
}

static __always_inline int on_sockops(struct bpf_sock_ops *ctx)
{
	__u32 active = ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB;
	struct control *ctl = control();
	struct bpf_sock *sk = ctx->sk;
	struct packet p = {};
	__u32 address[4];
	struct state *st;

	if (!sk || !ctl || (!active && ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB))
		return 1;
	st = bpf_sk_storage_get(&states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st) {
		count(0, SLOT_NONE, C_NO_STORAGE);
		return 1;
	}
	/* calls that cross end here too, and stay ours */
	if (!active && st->initiator)
		return 1;
	if (ctx->family == 2) {
		set_peer4(&p, ctx->remote_ip4);
	} else {
		address[0] = ctx->remote_ip6[0];
		address[1] = ctx->remote_ip6[1];
		address[2] = ctx->remote_ip6[2];
		address[3] = ctx->remote_ip6[3];
		set_peer6(&p, address);
	}
	p.peer_port = bpf_ntohl(ctx->remote_port);
	/* the call itself was judged just now */
	if (active && st->initiator == I_LOCAL && same_peer(st, &p))
		return 1;
	/* an accepted connection passed its listener's verdict; a new one has passed none yet */
	st->stamp = active ? 0 : stamp_unmanaged(ctl);
	st->candidate = 0;
	record(st, active ? I_LOCAL : I_PEER, &p);
	return 1;
}

/* An ancestor at a level, 0 below the cgroup itself. */
static __always_inline struct cgroup *ancestor_at(struct cgroup *c, __u32 level)
{
	struct cgroup *ancestor = 0;

	if (!c || level > (__u32)BPF_CORE_READ(c, level))
		return 0;
	bpf_probe_read_kernel(&ancestor, sizeof(ancestor), &c->ancestors[level]);
	return ancestor;
}

static __always_inline __u64 ancestor_id(struct cgroup *c, __u32 level)
{
	struct cgroup *ancestor = ancestor_at(c, level);

	return ancestor ? BPF_CORE_READ(ancestor, kn, id) : 0;
}

/* Root of the first user namespace, by whom files are created: not root of a namespace that a user made. */
static __always_inline int is_root_acting(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return !BPF_CORE_READ(task, cred, fsuid.val) && !BPF_CORE_READ(task, cred, user_ns, level);
}

#define S_IWGRP_OTH 022

static __always_inline int is_root_only(struct cgroup *c)
{
	struct kernfs_iattrs *changed = BPF_CORE_READ(c, kn, iattr);

	if (BPF_CORE_READ(c, kn, mode) & S_IWGRP_OTH)
		return 0;
	return !changed || !BPF_CORE_READ(changed, ia_uid.val);
}

/* Whether root alone writes every directory above: what is created there has a name that root gave. */
static __always_inline int is_named_by_root(struct cgroup *c)
{
	__u32 level, own = BPF_CORE_READ(c, level);

	if (own > MAX_DEPTH || !is_root_acting())
		return 0;
	for (level = 0; level < MAX_DEPTH && level < own; level++) {
		struct cgroup *above = ancestor_at(c, level);

		if (!above || !is_root_only(above))
			return 0;
	}
	return 1;
}

/* A literal cgroup path, and one that a failsafe rule names, is known before mkdir returns: no process of it
 * ever ran unmapped. A path that others than root may create is not: any user could give its name to processes
 * of their own. */
static __always_inline int on_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *c = (struct cgroup *)ctx->args[0];
	const char *path = (const char *)ctx->args[1];
	struct control *ctl = control();
	struct literal_key key = {};
	__u32 *slot, mapped = SLOT_NONE, known = 0;
	__u64 id, *name, named = 0;

	if (!ctl || BPF_CORE_READ(c, root, hierarchy_id))
		return 0;
	if (bpf_probe_read_kernel_str(key.path, sizeof(key.path), path) < 0)
		return 0;
	slot = bpf_map_lookup_elem(&literals, &key);
	if (slot)
		mapped = *slot;
	name = bpf_map_lookup_elem(&failsafe_paths, &key);
	if (name)
		named = *name;
	if ((mapped == SLOT_NONE && !named) || !is_named_by_root(c))
		return 0;
	id = BPF_CORE_READ(c, kn, id);
	if (mapped != SLOT_NONE)
		known |= !bpf_map_update_elem(&cgroups, &id, &mapped, BPF_ANY);
	if (named)
		known |= !bpf_map_update_elem(&failsafe_cgroups, &id, &named, BPF_ANY);
	if (known)
		__sync_fetch_and_add(&ctl->mkdirs, 1);
	return 0;
}

/* The last reference to a removed cgroup is gone, and each of its sockets held one: nobody will ask for its
 * mapping or for its exemption. Services that restart would fill the maps with these, also while no agent
 * runs. */
static __always_inline int on_release(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *c = (struct cgroup *)ctx->args[0];
	__u64 id;

	if (BPF_CORE_READ(c, root, hierarchy_id))
		return 0;
	id = BPF_CORE_READ(c, kn, id);
	bpf_map_delete_elem(&cgroups, &id);
	bpf_map_delete_elem(&failsafe_cgroups, &id);
	return 0;
}

#endif
