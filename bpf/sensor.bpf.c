/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Processes as they begin and end, told through one ring that the agent reads. Nothing here decides
 * anything; what is too much or finds no room is counted and left out. A record wakes the agent only where
 * it is the first that it has not read. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "process.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define ALREADY_THERE 17
#define FLAG_GROUP_EXIT 4
#define WINDOW_SHIFT 27

static __always_inline void tally(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&losses, &what);

	if (n)
		*n += 1;
}

static __always_inline int is_ours(void)
{
	__u32 zero = 0;
	struct bounds *b = bpf_map_lookup_elem(&limits, &zero);

	return b && (!b->cgroup || bpf_get_current_ancestor_cgroup_id(b->level) == b->cgroup);
}

static __always_inline int may_tell(int is_exec)
{
	__u64 window = bpf_ktime_get_boot_ns() >> WINDOW_SHIFT;
	__u32 zero = 0;
	struct bounds *most = bpf_map_lookup_elem(&limits, &zero);
	struct spent *s = bpf_map_lookup_elem(&spending, &zero);

	if (!most || !s)
		return 0;
	if (s->window != window) {
		s->window = window;
		s->execs = s->exits = 0;
	}
	return is_exec ? s->execs++ < most->execs : s->exits++ < most->exits;
}

static __always_inline int is_told(struct task_struct *task)
{
	struct ended key = {
		.start_ns = BPF_CORE_READ(task, group_leader, start_boottime),
		.pid = BPF_CORE_READ(task, tgid),
	};
	__u8 one = 1;

	return bpf_map_update_elem(&ends, &key, &one, BPF_NOEXIST) == -ALREADY_THERE;
}

/* args: the task, its pid before, and the binary's parameters */
SEC("raw_tp/sched_process_exec")
int aegis_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	__u32 zero = 0, size;
	struct page *page = bpf_map_lookup_elem(&pages, &zero);

	if (!is_ours())
		return 0;
	tally(SEEN_EXEC);
	if (!page || !may_tell(1)) {
		tally(LOST_RATE_EXEC);
		return 0;
	}
	write_down(page, task);
	size = sizeof(page->r) + sizeof(page->ancestors) + page->r.path_bytes + page->r.cgroup_bytes +
	       page->r.arg_bytes;
	if (size > sizeof(*page))
		size = sizeof(*page);
	if (bpf_ringbuf_output(&records, page, size, 0))
		tally(LOST_FULL_EXEC);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int aegis_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct record r = {};

	if (BPF_CORE_READ(signal, live.counter) || !is_ours() || is_told(task))
		return 0;	/* not the last thread */
	tally(SEEN_EXIT);
	if (!may_tell(0)) {
		tally(LOST_RATE_EXIT);
		return 0;
	}
	fill(&r, task, RECORD_EXIT);
	BPF_CORE_READ_STR_INTO(&r.comm, task, group_leader, comm);
	if (BPF_CORE_READ(signal, flags) & FLAG_GROUP_EXIT)
		r.status = BPF_CORE_READ(signal, group_exit_code);
	else
		r.status = BPF_CORE_READ(task, group_leader, exit_code);
	if (bpf_ringbuf_output(&records, &r, sizeof(r), 0))
		tally(LOST_FULL_EXIT);
	return 0;
}
