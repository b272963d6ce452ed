/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The judging core: an initiation and a generation in, a verdict word out (contracts §1). */
#ifndef AEGIS_JUDGE_H
#define AEGIS_JUDGE_H

#include "failsafe.h"

/* ns of the boot clock, read anew once a jiffy: at most 4 ms late. */
static __always_inline struct clock *clock_of_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&clocks, &zero);
}

static __always_inline __u64 now_ns(void)
{
	struct clock *c = clock_of_cpu();
	__u64 jiffies = bpf_jiffies64();

	if (!c)
		return bpf_ktime_get_boot_ns();
	if (c->jiffies != jiffies) {
		c->boot_ns = bpf_ktime_get_boot_ns();
		c->jiffies = jiffies;
	}
	return c->boot_ns;
}

static __always_inline int is_expired(const struct descriptor *d, __u64 now)
{
	__u32 cell = d->deadline_cell;
	__u64 *deadline = bpf_map_lookup_elem(&deadlines, &cell);

	return !deadline || now >= *deadline;
}

/* The verdict apart from lease and liveness. Sets all flags but W_REFUSED. */
static __always_inline __u32 judge(void *inner, const struct descriptor *d, struct view *v)
{
	__u32 side = v->dir == INGRESS ? W_INGRESS : 0;
	__u32 found = is_failsafe(v);

	v->depends = !!(found & F_DEPENDS);
	if (found & F_SAFE)
		return side | FAILSAFE;
	if (v->p.malformed)
		return side | W_DENY | MALFORMED;
	found = find_entry(inner, d, &v->p, v->dir);
	if (found & W_DENY)
		return side | found | DENY;
	if (found)
		return side | found | ALLOW;
	if (v->dir == INGRESS && !(d->flags & D_INGRESS))
		return side | UNRESTRICTED;
	return side | W_DENY | NO_MATCH;
}

static __always_inline __u32 reason_of(__u32 word)
{
	return word & W_REASON;
}

/* Whether a stamp says that the flow was let pass from generation `previous` on until this one came, or
 * that this one kept it (before its mapping changed). */
static __always_inline int was_live(const struct descriptor *d, __u64 stamp)
{
	__u64 generation = stamp >> W_BITS;

	if (!stamp || stamp & W_REFUSED)
		return 0;
	if ((generation & ~1ULL) == d->generation)
		return (stamp & W_REASON) == KEPT;
	return generation >= d->previous && generation < d->generation;
}

static __always_inline __u32 keep_live(const struct descriptor *d, __u32 word, __u64 stamp)
{
	if (reason_of(word) == NO_MATCH && (d->flags & D_KEEP) && was_live(d, stamp))
		return (word & W_INGRESS) | KEPT;
	return word;
}

/* The lease over a verdict, and whether anything is really refused. */
static __always_inline __u32 finish(const struct descriptor *d, __u32 word, int expired)
{
	if (expired && reason_of(word) != FAILSAFE)
		word = (word & W_INGRESS) | (d->flags & D_CLOSED ? W_DENY | EXPIRED_CLOSED : EXPIRED_OPEN);
	if ((word & W_DENY) && d->mode == MODE_ENFORCE)
		word |= W_REFUSED;
	return word;
}

/* Judge by the active generation (role 0) or the candidate (role 1), looked up once: word, stamp and
 * generation of the answer belong together. Returns 0 where there is none. A global function, so that the
 * verifier reads it once and not for each of its callers' paths. */
__noinline int judge_flow(struct view *v, __u32 role)
{
	struct descriptor *d;
	__u32 index, word, kept, zero = 0;
	void *inner;

	if (!v)
		return 0;
	index = v->slot + (role ? MAX_SLOTS : 0);
	inner = bpf_map_lookup_elem(&generations, &index);
	if (!inner)
		return 0;
	d = bpf_map_lookup_elem(inner, &zero);
	if (!d)
		return 0;
	v->generation = d->generation;
	if (!role && v->reuse && v->before >> W_BITS == d->generation)
		word = v->before & ((1 << W_BITS) - 1) & ~W_REFUSED;
	else
		word = judge(inner, d, v);
	if (!role) {
		__u32 expired = v->expired || is_expired(d, v->now);

		if (v->live)
			word = keep_live(d, word, v->before);
		kept = word;
		word = finish(d, word, expired);
		/* under an ended lease it is no cache entry, hence the odd number; a renewal keeps what was kept. A
		 * flow of UDP is of any socket: what depends on this one's cgroup is no entry either */
		expired |= v->depends && v->p.proto != P_TCP;
		v->stamp = (d->generation | expired) << W_BITS | (reason_of(kept) == KEPT ? kept : word);
	} else {
		v->stamp = d->generation << W_BITS | word;
	}
	v->word = word;
	return 1;
}

/* The stamp of a flow that nothing governs now. */
static __always_inline __u64 stamp_unmanaged(const struct control *ctl)
{
	return (ctl->generation | 1) << W_BITS | UNMANAGED;
}

#endif
