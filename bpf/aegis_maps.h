/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* Everything that the kernel and the agent share. wire/layout.py mirrors the structures; tests/bpf compare
 * the two through BTF. A change here raises AEGIS_LAYOUT, which is part of the pin folder's name. */
#ifndef AEGIS_MAPS_H
#define AEGIS_MAPS_H

#include <linux/types.h>
#include "account_maps.h"
#include "flow_maps.h"

#define AEGIS_LAYOUT 2
#define BLOCK 128
#define MAX_SLOTS 256
#define MAX_LEVELS 16
#define V6_LEVELS 7
#define NO_CLASS 0xffff

/* Slots beyond the services': of no service, and of the agent's own cgroup. */
#define SLOT_NONE 256
#define SLOT_AGENT 257
#define SLOT_ROWS 258
#define MAX_DEPTH 32

#define EGRESS 0
#define INGRESS 1

enum reason {
	C_LOST_FLOWS = 0,	/* not a verdict: flows that found no room to be counted */
	UNMANAGED = 1,
	FAILSAFE = 2,
	EXPIRED_OPEN = 3,
	EXPIRED_CLOSED = 4,
	MALFORMED = 5,
	DENY = 6,
	ALLOW = 7,
	UNRESTRICTED = 8,
	NO_MATCH = 9,
	KEPT = 10,
	/* not verdicts: further counters of a slot */
	C_WOULD_BLOCK = 11,
	C_UDP_CREATED = 12,
	C_LOST_EVENTS = 13,
	C_TOO_DEEP = 14,
	C_NO_STORAGE = 15,
};
#define COUNTERS 16

/* A verdict word, 24 bits: reason 0..3, prefix length 4..11, the rest flags. */
#define W_REASON 0xf
#define W_PLEN_SHIFT 4
#define W_PEER (1 << 12)	/* the entry is of allow_cidrs, else of edges or ingress */
#define W_ANY (1 << 13)		/* the entry names any protocol */
#define W_WILD (1 << 14)	/* the entry names port 0 */
#define W_MATCH (1 << 15)	/* an entry decided */
#define W_INGRESS (1 << 16)	/* the peer initiated */
#define W_DENY (1 << 17)	/* judged deny */
#define W_REFUSED (1 << 18)	/* and really refused: deny in enforce */
#define W_BITS 24

/* A stamp is one 64-bit word, so that a verdict and its generation are never torn apart:
 * generation << W_BITS | word. Generations are even; an odd one says "not refused (or refused) at some time
 * in that generation" and never is a cache hit. */

#define MODE_OBSERVE 0
#define MODE_ENFORCE 1
#define D_CLOSED 1		/* on_expiry closed */
#define D_KEEP 2		/* established keep */
#define D_INGRESS 4		/* ingress is restricted */
#define D_DENIES 8		/* there are deny entries */

/* Block 0 of a generation. Offsets are block numbers. The first 32 bytes are all that a cache hit reads. */
struct descriptor {
	__u64 generation;
	__u64 previous;		/* flows not refused since this generation are live; == generation: none is */
	__u32 deadline_cell;
	__u8 mode;
	__u8 flags;
	__u8 index_bits;
	__u8 v6_levels;
	__u32 v4_index;
	__u32 v4_leaves;
	__u32 n_leaves;
	__u32 n_v6;
	__u32 v6_level[V6_LEVELS];	/* level 0 holds every start, level k every 8^k-th */
	__u32 v6_classes;
	__u32 classes;
	__u32 items;
	__u32 n_classes;
	__u32 n_items;
	__u32 service_id;
	__u32 layout;
	__u32 blocks;
	__u32 zero;
};

/* Block 1: for people and for read-back, never for judging. */
struct identity {
	__u64 version;
	__u8 digest[32];
	__u8 tables_digest[32];
};

struct leaf {
	__u32 start;
	__u16 cls;
	__u16 zero;
};

struct key6 {
	__u64 hi;
	__u64 lo;
};

struct cls {
	__u16 parent;
	__u8 plen;
	__u8 zero;
	__u32 wild;
	__u32 item_start;
	__u16 item_count;
	__u16 zero2;
};

struct block {
	union {
		struct descriptor d;
		__u32 words[32];
		struct leaf leaves[16];
		struct key6 keys[8];
		__u16 ids[64];
		struct cls classes[8];
	};
};

/* Socket storage. initiator: 0 no record, else 1 + direction. peer is recorded with the initiator. */
struct state {
	__u64 stamp;
	__u64 candidate;
	__u32 epoch;
	__u16 slot;
	__u16 narrow;		/* bit i: the socket is in the cgroup that failsafe rule i names */
	__u32 peer[4];
	__u16 peer_port;
	__u8 initiator;
	__u8 marks;
	__u32 pid;		/* who made the socket, for accounts; 0: made before them */
	__u64 netns;		/* cookie of the namespace that the socket was made in; 0: made before us */
	__u64 start_ns;		/* of the process */
};
#define I_LOCAL 1
#define I_PEER 2
#define M_FIRST 0x3		/* who sent first where nothing governs, for accounts: like initiator */
#define M_COUNTED 0x4		/* its connection is in the accounts */
#define M_ANY_SOURCE 0x8	/* it could, at some time, name a source that is not its host's */

struct control {
	__u64 generation;	/* the highest that is in force */
	__u32 epoch;		/* the mapping's and the failsafe list's: this, which the agent raises, */
	__u32 mkdirs;		/* plus this, which the kernel raises */
	__u32 events_per_tick;	/* denied flows told a CPU and jiffy */
	__u32 pass_slot;	/* the slot that a pass over flows is about */
	__u32 pass_stamp;	/* the pass stamps sockets that existed before */
	__u32 zero;
};

struct clock {
	__u64 jiffies;
	__u64 boot_ns;
	__u64 events_jiffy;
	__u64 events;
};

struct failsafe_rule {
	__u32 net[4];
	__u32 mask[4];		/* of the 128-bit form, network order */
	__u64 cgroup;		/* name of a path, see `failsafe_paths`; 0: every cgroup */
	__u16 port;
	__u8 dir;
	__u8 proto;		/* 6, 17, or 0 for any */
	__u8 level;		/* of the cgroup */
	__u8 zero[3];
};
#define MAX_FAILSAFE 16
struct failsafe_list {
	__u32 count;
	__u32 narrowed;		/* how many rules name a cgroup */
	struct failsafe_rule rules[MAX_FAILSAFE];
};

/* A key of a trie: value 1 for an own address or prefix, 0 (of the whole namespace) where it has been read. */
struct own_key {
	__u32 bits;		/* how many of the following decide: 64 for the namespace, and the prefix's */
	__u32 netns[2];		/* the cookie */
	__u32 address[4];
};
#define OWN_BITS (64 + 128)

#define MAX_PATH 256
struct literal_key {
	char path[MAX_PATH];
};

struct listener_key {
	__u64 netns;
	__u32 port;
	__u32 zero;
};

#define HOOK_SKB 0
#define HOOK_CONNECT 1
#define HOOK_SENDMSG 2
struct denied {
	__u64 boot_ns;
	__u64 generation;
	__u32 slot;
	__u32 word;
	__u32 peer[4];
	__u32 local[4];
	__u16 peer_port;
	__u16 local_port;
	__u8 proto;
	__u8 has_ports;
	__u8 has_local;
	__u8 hook;
	__u8 candidate;
	__u8 packet_dir;
	__u8 zero[6];
};

/* What the test entries take from skb->cb. */
#define CB_SLOT 0
#define CB_FLAGS 1
#define CB_INITIATOR 0x3	/* 0: by direction */
#define CB_LOCAL 0x4
#define CB_TCP 0x8		/* treat the socket as an established TCP socket */
#define CB_STORAGE 0x10		/* give the socket storage, so that verdicts are cached */
#define CB_EXPIRED 0x20

#endif
