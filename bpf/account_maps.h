/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What the accounts of traffic share with the agent; a part of aegis_maps.h. */
#ifndef AEGIS_ACCOUNT_MAPS_H
#define AEGIS_ACCOUNT_MAPS_H

#include <linux/types.h>

/* A flow as it is counted: without the initiator's port, and by what became of it. */
struct flow_key {
	__u64 cgroup;
	__u32 local[4];
	__u32 peer[4];
	__u32 verdict;		/* reason, W_DENY and W_REFUSED of a verdict word */
	__u32 slot;
	__u16 port;
	__u8 proto;
	__u8 dir;		/* of the initiation */
	__u32 zero;
};

/* packets and bytes by direction of the packet; pid made the last socket. Times are of the boot clock. */
struct flow_count {
	__u64 first_ns;
	__u64 last_ns;
	__u64 packets[2];
	__u64 bytes[2];
	__u64 start_ns;
	__u32 connections;
	__u32 pid;
};

#endif
