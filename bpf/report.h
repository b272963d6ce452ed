/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What the agent is told: counters for every verdict, and denied flows one by one at a bounded rate. */
#ifndef AEGIS_REPORT_H
#define AEGIS_REPORT_H

#include "judge.h"

static __always_inline void count(__u32 role, __u32 slot, __u32 reason)
{
	__u32 index = (role * SLOT_ROWS + slot) * COUNTERS + (reason & 15);
	__u64 *n = bpf_map_lookup_elem(&counters, &index);

	if (n)
		*n += 1;
}

static __always_inline void count_word(__u32 role, __u32 slot, __u32 word)
{
	count(role, slot, reason_of(word));
	if ((word & (W_DENY | W_REFUSED)) == W_DENY)
		count(role, slot, C_WOULD_BLOCK);
}

static __always_inline int may_tell(void)
{
	struct clock *c = clock_of_cpu();
	__u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&controls, &zero);
	__u64 jiffies = bpf_jiffies64();

	if (!c || !ctl)
		return 0;
	if (c->events_jiffy != jiffies) {
		c->events_jiffy = jiffies;
		c->events = 0;
	}
	c->events++;
	return c->events <= ctl->events_per_tick;
}

/* A denied packet or call. */
__noinline int tell(const struct view *v)
{
	struct denied *e;

	if (!v)
		return 0;
	if (!may_tell() || !(e = bpf_ringbuf_reserve(&events, sizeof(*e), 0))) {
		count(v->candidate, v->slot, C_LOST_EVENTS);
		return 0;
	}
	e->boot_ns = bpf_ktime_get_boot_ns();
	e->generation = v->generation;
	e->slot = v->slot;
	e->word = v->word;
	__builtin_memcpy(e->peer, v->p.peer, 16);
	__builtin_memcpy(e->local, v->p.local, 16);
	e->peer_port = v->p.peer_port;
	e->local_port = v->p.local_port;
	e->proto = v->p.proto;
	e->has_ports = v->p.has_ports;
	e->has_local = !!(v->p.local[0] | v->p.local[1] | v->p.local[2] | v->p.local[3]);
	e->hook = v->hook;
	e->candidate = v->candidate;
	e->packet_dir = v->packet_dir;
	__builtin_memset(e->zero, 0, sizeof(e->zero));
	bpf_ringbuf_submit(e, 0);
	return 1;
}

#endif
