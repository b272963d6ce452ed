/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The judging core: an initiation and a generation in, a verdict word out (contracts §1). */
#ifndef AEGIS_JUDGE_H
#define AEGIS_JUDGE_H

#include "search.h"

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

/* 127/8, 0.0.0.0, ::1 and :: as a peer. */
static __always_inline int is_loopback(const struct packet *p)
{
	if (p->family == 4)
		return !p->peer[3] || (p->peer[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(p->peer[0] | p->peer[1] | p->peer[2]) && (!p->peer[3] || p->peer[3] == bpf_htonl(1));
}

static __always_inline int is_answer(const struct packet *p)
{
	/* 0 3 4 5 11 12 14 16 18, and 1 2 3 4 129 */
	if (p->proto == P_ICMP && p->family == 4)
		return p->icmp_type < 32 && (0x55839U >> p->icmp_type & 1);
	if (p->proto == P_ICMP6 && p->family == 6)
		return (p->icmp_type >= 1 && p->icmp_type <= 4) || p->icmp_type == 129;
	return 0;
}

static __always_inline int is_discovery(const struct packet *p)
{
	__u32 t = p->icmp_type;

	if (p->proto != P_ICMP6 || p->family != 6)
		return 0;
	if (t >= 133 && t <= 137)
		return p->hop_limit == 255;
	return (t >= 130 && t <= 132) || t == 143;
}

static __always_inline int is_dhcp(const struct packet *p)
{
	if (p->proto != P_UDP)
		return 0;
	if (p->family == 4)
		return p->local_port == 68 && p->peer_port == 67;
	return p->local_port == 546 && p->peer_port == 547;
}

static __always_inline int inside(const __u32 *address, const __u32 *net, const __u32 *mask)
{
	return !(((address[0] ^ net[0]) & mask[0]) | ((address[1] ^ net[1]) & mask[1]) |
		 ((address[2] ^ net[2]) & mask[2]) | ((address[3] ^ net[3]) & mask[3]));
}

struct rule_search {
	struct failsafe_list *list;
	const struct packet *p;
	__u32 dir;
	__u32 port;
	__u32 found;
	__u32 narrow;
};

static int try_rule(__u32 i, struct rule_search *s)
{
	const struct failsafe_rule *r = &s->list->rules[i & (MAX_FAILSAFE - 1)];
	const struct packet *p = s->p;

	if (i >= s->list->count)
		return 1;
	if (r->dir != s->dir || (r->port && r->port != s->port))
		return 0;
	if (r->proto ? r->proto != p->proto : r->port && !p->has_ports)
		return 0;
	if (!inside(p->peer, r->net, r->mask))
		return 0;
	if (r->cgroup && !(s->narrow >> (i & (MAX_FAILSAFE - 1)) & 1))
		return 0;
	s->found = 1;
	return 1;
}

/* All that is known of one packet, or of one call, while it is judged. */
struct view {
	struct packet p;
	__u64 now;
	__u64 before;		/* the flow's stamp so far; 0 for none */
	__u64 stamp;		/* the answer, with its generation */
	__u64 generation;
	__u32 word;
	__u32 slot;
	__u32 dir;		/* of the initiation */
	__u32 packet_dir;
	__u32 narrow;		/* bit i: the socket is inside the cgroup of failsafe rule i */
	__u8 live;		/* established, or in the table of UDP flows */
	__u8 reuse;		/* `before` answers where it is of this generation */
	__u8 recorded;		/* the flow's stamp is the socket's */
	__u8 expired;
	__u8 hook;
	__u8 candidate;
	__u8 zero[6];
};

/* What can never be denied. */
static __always_inline int is_failsafe(const struct view *v)
{
	const struct packet *p = &v->p;
	struct failsafe_list *list;
	__u32 zero = 0;

	if (is_loopback(p))
		return 1;
	if (p->malformed)
		return 0;
	if (p->proto == P_ICMP || p->proto == P_ICMP6)
		if (is_discovery(p) || (v->packet_dir == INGRESS && is_answer(p)))
			return 1;
	if (is_dhcp(p))
		return 1;
	list = bpf_map_lookup_elem(&failsafes, &zero);
	if (list && list->count) {
		struct rule_search s = {.list = list, .p = p, .dir = v->dir, .narrow = v->narrow};

		s.port = v->dir == EGRESS ? p->peer_port : p->local_port;
		bpf_loop(MAX_FAILSAFE, try_rule, &s, 0);
		return s.found;
	}
	return 0;
}

/* The verdict apart from lease and liveness. Sets all flags but W_REFUSED. */
static __always_inline __u32 judge(void *inner, const struct descriptor *d, const struct view *v)
{
	__u32 side = v->dir == INGRESS ? W_INGRESS : 0;
	__u32 found;

	if (is_failsafe(v))
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
	__u32 index, word, zero = 0;
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
		word = finish(d, word, expired);
		/* under an ended lease it is no cache entry, hence the odd number */
		v->stamp = (d->generation | expired) << W_BITS | word;
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
