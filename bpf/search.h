/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The compiled tables of one generation: address -> class -> the entry that decides. */
#ifndef AEGIS_SEARCH_H
#define AEGIS_SEARCH_H

#include "parse.h"
#include "match.h"

#define STEPS 20	/* of a binary search over blocks */

static __always_inline struct block *block_at(void *inner, __u32 index)
{
	return bpf_map_lookup_elem(inner, &index);
}

/* The searches are bpf_loop callbacks: plain loops multiply the verifier's paths beyond its limit. */
struct halving {
	void *inner;
	const struct descriptor *d;
	__u32 first;
	__u32 last;
	__u32 address;
	__u32 guess;
};

/* The first two looks are where evenly spread leaves would have it, and next to that. */
static int halve(__u32 i, struct halving *s)
{
	__u32 mid = (s->first + s->last + 1) / 2;
	struct block *b;

	if (s->first >= s->last)
		return 1;
	if (i == 0)
		mid = s->guess;
	else if (i == 1)
		mid = s->first == s->guess ? s->guess + 1 : s->last;
	b = block_at(s->inner, s->d->v4_leaves + mid);
	if (!b)
		return 1;
	if (b->leaves[0].start > s->address) {
		s->last = mid - 1;
		return 0;
	}
	s->first = mid;
	if (b->leaves[15].start > s->address)
		s->last = mid;
	return 0;
}

/* The last leaf whose start is not above the address: in its bucket, or just before it. */
static __always_inline __u32 class_of_v4(void *inner, const struct descriptor *d, __u32 address)
{
	__u32 bucket = d->index_bits ? address >> ((32 - d->index_bits) & 31) : 0;
	struct halving s = {.inner = inner, .d = d, .address = address};
	struct block *b;
	__u32 lo, hi, j;

	b = block_at(inner, d->v4_index + (bucket >> 5));
	if (!b)
		return NO_CLASS;
	lo = b->words[bucket & 31];
	bucket++;
	if (!(bucket & 31)) {
		b = block_at(inner, d->v4_index + (bucket >> 5));
		if (!b)
			return NO_CLASS;
	}
	hi = b->words[bucket & 31];
	s.first = (lo ? lo - 1 : 0) >> 4;
	s.last = (hi ? hi - 1 : 0) >> 4;
	s.guess = s.first + ((__u64)(address << (d->index_bits & 31)) * (s.last - s.first + 1) >> 32);
	if (s.first < s.last)
		bpf_loop(STEPS, halve, &s, 0);
	b = block_at(inner, d->v4_leaves + s.first);
	if (!b)
		return NO_CLASS;
	j = b->leaves[8].start <= address ? 8 : 0;
	j += b->leaves[(j + 4) & 15].start <= address ? 4 : 0;
	j += b->leaves[(j + 2) & 15].start <= address ? 2 : 0;
	j += b->leaves[(j + 1) & 15].start <= address ? 1 : 0;
	return b->leaves[j & 15].cls;	/* the tail repeats the last leaf */
}

static __always_inline int not_above(const struct key6 *key, __u64 hi, __u64 lo)
{
	return key->hi < hi || (key->hi == hi && key->lo <= lo);
}

struct descent {
	void *inner;
	const struct descriptor *d;
	__u64 hi;
	__u64 lo;
	__u32 position;
	__u32 level;
};

static int descend(__u32 i, struct descent *s)
{
	__u32 level, j, last, first_word = __builtin_offsetof(struct descriptor, v6_level) / 4;
	const __u32 *words = (const __u32 *)s->d;
	struct block *b;

	if (!s->level)
		return 1;
	level = --s->level;
	b = block_at(s->inner, words[(first_word + level) & 31] + s->position);
	if (!b)
		return 1;
	j = not_above(&b->keys[4], s->hi, s->lo) ? 4 : 0;
	j += not_above(&b->keys[(j + 2) & 7], s->hi, s->lo) ? 2 : 0;
	j += not_above(&b->keys[(j + 1) & 7], s->hi, s->lo) ? 1 : 0;
	last = (s->d->n_v6 - 1) >> (3 * level & 31);
	s->position = s->position * 8 + j;
	if (s->position > last)
		s->position = last;	/* the tail is all ones */
	return 0;
}

static __always_inline __u32 class_of_v6(void *inner, const struct descriptor *d, const __u32 *address)
{
	struct descent s = {.inner = inner, .d = d, .level = d->v6_levels};
	struct block *b;

	s.hi = (__u64)bpf_ntohl(address[0]) << 32 | bpf_ntohl(address[1]);
	s.lo = (__u64)bpf_ntohl(address[2]) << 32 | bpf_ntohl(address[3]);
	bpf_loop(V6_LEVELS, descend, &s, 0);
	b = block_at(inner, d->v6_classes + (s.position >> 6));
	return b && d->n_v6 ? b->ids[s.position & 63] : NO_CLASS;
}

struct item_search {
	void *inner;
	const struct descriptor *d;
	__u32 lo;
	__u32 hi;
	__u32 key;
	__u32 bits;
};

static int item_step(__u32 i, struct item_search *s)
{
	__u32 mid = (s->lo + s->hi) / 2, item;
	struct block *b;

	if (s->lo >= s->hi)
		return 1;
	b = block_at(s->inner, s->d->items + (mid >> 5));
	if (!b)
		return 1;
	item = b->words[mid & 31];
	if (item >> 8 == s->key) {
		s->bits = item & 0xff;
		return 1;
	}
	if (item >> 8 < s->key)
		s->lo = mid + 1;
	else
		s->hi = mid;
	return 0;
}

/* The bits of one (direction, protocol, port) in a class's own list, 0 if it is not there. */
static __always_inline __u32 item_bits(void *inner, const struct descriptor *d, __u32 start, __u32 count, __u32 key)
{
	struct item_search s = {.inner = inner, .d = d, .lo = start, .hi = start + count, .key = key};

	bpf_loop(17, item_step, &s, 0);
	return s.bits;
}

struct chain {
	void *inner;
	const struct descriptor *d;
	__u32 id;
	__u32 dir;
	__u32 proto;
	__u32 port;
	__u32 found;
};

static int climb(__u32 i, struct chain *s)
{
	__u32 bits = 0, match;
	struct block *b;
	struct cls *c;

	if (s->id == NO_CLASS)
		return 1;
	b = block_at(s->inner, s->d->classes + (s->id >> 3));
	if (!b)
		return 1;
	c = &b->classes[s->id & 7];
	if (c->item_count && s->proto != 2)
		bits = item_bits(s->inner, s->d, c->item_start, c->item_count,
				 s->dir << 17 | s->proto << 16 | s->port);
	match = match_of(bits, c->wild, s->dir, s->proto);
	if (match & W_DENY) {
		s->found = match | (__u32)c->plen << W_PLEN_SHIFT;
		return 1;
	}
	if (match && !s->found) {
		s->found = match | (__u32)c->plen << W_PLEN_SHIFT;
		if (!(s->d->flags & D_DENIES))
			return 1;
	}
	s->id = c->parent;
	return 0;
}

/* Innermost matching deny, else innermost matching allow, as word flags with the prefix length; 0 for none. */
static __noinline __u32 find_entry(void *inner, const struct descriptor *d, const struct packet *p, __u32 dir)
{
	struct chain s = {.inner = inner, .d = d, .dir = dir};

	s.proto = p->proto == P_TCP ? 0 : p->proto == P_UDP ? 1 : 2;
	s.port = dir == EGRESS ? p->peer_port : p->local_port;
	s.id = p->family == 4 ? class_of_v4(inner, d, bpf_ntohl(p->peer[3])) : class_of_v6(inner, d, p->peer);
	bpf_loop(MAX_LEVELS, climb, &s, 0);
	return s.found;
}

#endif
