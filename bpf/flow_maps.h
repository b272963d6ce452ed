/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Flows of UDP, whose first datagram decides who initiated them; a part of aegis_maps.h. */
#ifndef AEGIS_FLOW_MAPS_H
#define AEGIS_FLOW_MAPS_H

#include <linux/types.h>

/* With the namespace: who is root in one of their own forges any datagram there. */
struct udp_key {
	__u64 netns;
	__u32 peer[4];
	__u16 peer_port;
	__u16 local_port;
	__u32 zero;
};

struct udp_flow {
	__u64 stamp;
	__u64 candidate;
	__u64 last_ns;
	__u8 initiator;
	__u8 both;
	__u8 zero[2];
	/* what waits to be counted (waiting.h), and as what */
	__u32 verdict;
	__u64 counted_ns;
	__u64 waits_since;	/* 0: nothing waits */
	__u64 waits_last;
	__u64 packets[2];
	__u64 bytes[2];
	__u64 cgroup;
	__u32 local[4];
	__u64 start_ns;
	__u32 pid;
	__u32 zero2;
};
#define UDP_ONE_WAY_NS 30000000000ULL
#define UDP_BOTH_WAYS_NS 180000000000ULL

#endif
