/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Which entry of one class decides. */
#ifndef AEGIS_MATCH_H
#define AEGIS_MATCH_H

#include "aegis_maps.h"

#define KIND_DENY 2

/* Every way to match is one bit, the first to decide lowest: deny first, then an exact port before every
 * port, a named protocol before any, the list before the peers. HASH sends the 12 bits to 12 places. The
 * table is read by a variable index, so that the verifier sees one number and not twelve paths. */
#define HASH 0x9ae0000U
#define WAY(bit) ((1U << (bit)) * HASH >> 28)
static const volatile __u32 FLAGS[16] = {
	[WAY(0)] = W_MATCH | W_DENY,
	[WAY(1)] = W_MATCH | W_DENY | W_ANY,
	[WAY(2)] = W_MATCH | W_DENY | W_WILD,
	[WAY(3)] = W_MATCH | W_DENY | W_WILD | W_ANY,
	[WAY(4)] = W_MATCH,
	[WAY(5)] = W_MATCH | W_PEER,
	[WAY(6)] = W_MATCH | W_ANY,
	[WAY(7)] = W_MATCH | W_PEER | W_ANY,
	[WAY(8)] = W_MATCH | W_WILD,
	[WAY(9)] = W_MATCH | W_WILD | W_PEER,
	[WAY(10)] = W_MATCH | W_WILD | W_ANY,
	[WAY(11)] = W_MATCH | W_WILD | W_ANY | W_PEER,
};

static __always_inline __u32 match_of(__u32 bits, __u32 wild, __u32 dir, __u32 proto)
{
	__u32 side = wild >> (dir * 9 & 31), named, any = side >> 6 & 7, ways, low;

	named = proto == 2 ? 0 : side >> (proto * 3 & 31) & 7;
	ways = bits >> 4 & 3;					/* deny, deny any */
	ways |= (named >> KIND_DENY & 1) << 2 | (any >> KIND_DENY & 1) << 3;
	ways |= (bits & 1) << 4 | (bits >> 2 & 1) << 5 | (bits >> 1 & 1) << 6 | (bits >> 3 & 1) << 7;
	ways |= (named & 3) << 8 | (any & 3) << 10;
	if (!ways)
		return 0;
	low = ways & -ways;
	return FLAGS[low * HASH >> 28 & 15];
}

#endif
