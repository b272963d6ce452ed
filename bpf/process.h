/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The sensor's maps, and a process written down: who it is, what stands above it, where it lies, its arguments. */
#ifndef AEGIS_PROCESS_H
#define AEGIS_PROCESS_H

#include "sensor_maps.h"
#include "task_types.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bounds);
} limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct spent);
} spending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

/* Ends that were told. Threads that end at one time may each find that none lives any more. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct ended);
	__type(value, __u8);
} ends SEC(".maps");

/* What an exec is written down in. The room beyond TEXT_BYTES lets the verifier see that a name fits. */
struct page {
	struct record r;
	struct above ancestors[MAX_ANCESTORS];
	char text[TEXT_BYTES + MAX_ARG_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct page);
} pages SEC(".maps");

const volatile struct above *btf_above __attribute__((unused));
const volatile struct record *btf_record __attribute__((unused));

static __always_inline void fill(struct record *r, struct task_struct *task, __u32 kind)
{
	r->boot_ns = bpf_ktime_get_boot_ns();
	r->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	r->kind = kind;
	r->pid = BPF_CORE_READ(task, tgid);
	r->uid = BPF_CORE_READ(task, real_cred, uid.val);
	r->status = 0;
	r->path_bytes = r->cgroup_bytes = r->arg_bytes = 0;
	r->cut = r->ancestors = 0;
}

struct climb {
	struct page *page;
	struct task_struct *task;
};

static int climb_step(__u32 i, struct climb *c)
{
	struct task_struct *child = c->task, *parent = BPF_CORE_READ(child, real_parent, group_leader);
	struct above *a;
	__u32 pid;

	if (!parent || parent == child || i >= MAX_ANCESTORS)
		return 1;
	pid = BPF_CORE_READ(parent, tgid);
	if (!pid)
		return 1;
	a = &c->page->ancestors[i & (MAX_ANCESTORS - 1)];
	a->pid = pid;
	a->zero = 0;
	a->start_ns = BPF_CORE_READ(parent, start_boottime);
	BPF_CORE_READ_STR_INTO(&a->comm, parent, comm);
	c->task = parent;
	c->page->r.ancestors = i + 1;
	return 0;
}

/* A name at `at`; the bytes that it took with its end. */
static __always_inline __u32 put_name(struct page *page, __u32 at, const void *name)
{
	long took;

	if (at > TEXT_BYTES - MAX_ARG_BYTES - NAME_BYTES)
		return 0;
	took = bpf_probe_read_kernel_str(&page->text[at & (TEXT_BYTES - 1)], NAME_BYTES, name);
	return took > 0 ? took : 0;
}

struct walk {
	struct page *page;
	struct dentry *dentry;
	struct vfsmount *mnt;
	struct kernfs_node *node;
	__u32 at;
	__u32 done;
};

/* One component towards the root of the mount namespace; at a mount's root, on to what it is mounted on. */
static int path_step(__u32 i, struct walk *w)
{
	struct dentry *here = w->dentry, *parent = BPF_CORE_READ(here, d_parent);
	struct vfsmount *mnt = w->mnt;
	struct mount *mount, *above;
	__u32 took;

	/* a file of memory lies in no folder: its own parent, and yet it has a name */
	if (here == BPF_CORE_READ(mnt, mnt_root) || (here == parent && w->at)) {
		mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
		above = BPF_CORE_READ(mount, mnt_parent);
		if (!above || above == mount) {
			w->done = 1;
			return 1;
		}
		w->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		w->mnt = (void *)above + bpf_core_field_offset(struct mount, mnt);
		return 0;
	}
	took = put_name(w->page, w->at, BPF_CORE_READ(here, d_name.name));
	if (!took)
		return 1;
	w->at += took;
	w->dentry = parent;
	return 0;
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node___rcu *newer = (void *)node;

	if (bpf_core_field_exists(newer->__parent))
		return BPF_CORE_READ(newer, __parent);
	return BPF_CORE_READ(node, parent);
}

static int cgroup_step(__u32 i, struct walk *w)
{
	struct kernfs_node *here = w->node, *parent = parent_of(here);
	__u32 took;

	if (!parent) {
		w->done = 1;
		return 1;
	}
	took = put_name(w->page, w->at, BPF_CORE_READ(here, name));
	if (!took)
		return 1;
	w->at += took;
	w->node = parent;
	return 0;
}

static __always_inline __u32 put_args(struct page *page, __u32 at, struct mm_struct *mm)
{
	__u64 from = BPF_CORE_READ(mm, arg_start), size = BPF_CORE_READ(mm, arg_end) - from;

	if (size > MAX_ARG_BYTES) {
		size = MAX_ARG_BYTES;
		page->r.cut |= CUT_ARGS;
	}
	if (!size || at > TEXT_BYTES - MAX_ARG_BYTES)
		return 0;
	if (bpf_probe_read_user(&page->text[at & (TEXT_BYTES - 1)], size, (void *)from))
		return 0;
	return size;
}

static __always_inline void write_down(struct page *page, struct task_struct *task)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = BPF_CORE_READ(mm, exe_file);
	struct climb climb = {.page = page, .task = BPF_CORE_READ(task, group_leader)};
	struct walk w = {.page = page};

	fill(&page->r, task, RECORD_EXEC);
	BPF_CORE_READ_STR_INTO(&page->r.comm, task, comm);
	bpf_loop(MAX_ANCESTORS, climb_step, &climb, 0);
	w.dentry = BPF_CORE_READ(exe, f_path.dentry);
	w.mnt = BPF_CORE_READ(exe, f_path.mnt);
	bpf_loop(MAX_NAMES, path_step, &w, 0);
	page->r.cut |= w.done ? 0 : CUT_PATH;
	page->r.path_bytes = w.at;
	w.done = 0;
	w.node = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn);
	bpf_loop(MAX_NAMES, cgroup_step, &w, 0);
	page->r.cut |= w.done ? 0 : CUT_CGROUP;
	page->r.cgroup_bytes = w.at - page->r.path_bytes;
	page->r.arg_bytes = put_args(page, w.at, mm);
}

#endif
