/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Which addresses are a network namespace's own: those of its devices, and those that its local routes name.
 * The agent writes the map; a namespace that it has not read (yet), or could not write whole, is unknown. */
#ifndef AEGIS_OWN_H
#define AEGIS_OWN_H

#include "objects.h"

#define OWN_NO 0
#define OWN_YES 1
#define OWN_UNKNOWN 2

/* OWN_NO, OWN_YES or OWN_UNKNOWN; the address is in the 128-bit form (IPv4 mapped), network order. */
static __always_inline int own_address(__u64 netns, const __u32 *address)
{
	struct own_key key = {.bits = OWN_BITS};
	__u8 *found;

	__builtin_memcpy(key.netns, &netns, sizeof(netns));
	__builtin_memcpy(key.address, address, sizeof(key.address));
	found = bpf_map_lookup_elem(&own, &key);
	return !found ? OWN_UNKNOWN : *found ? OWN_YES : OWN_NO;
}

/* Where a mistake must not refuse: what is unknown may be an own address. */
static __always_inline int is_own_address(__u64 netns, const __u32 *address)
{
	return own_address(netns, address) != OWN_NO;
}

#endif
