/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* What the sensor's programs and the agent share. wire/records.py mirrors it; a change raises SENSOR_LAYOUT,
 * which is part of the pin folder's name. */
#ifndef AEGIS_SENSOR_MAPS_H
#define AEGIS_SENSOR_MAPS_H

#include <linux/types.h>

#define SENSOR_LAYOUT 1
#define RECORD_EXEC 1
#define RECORD_EXIT 2
#define MAX_ANCESTORS 16
#define MAX_NAMES 40		/* components of a path */
#define NAME_BYTES 256
#define MAX_ARG_BYTES 4096
#define TEXT_BYTES 16384
#define RING_BYTES (4 * 1024 * 1024)

struct above {
	__u64 start_ns;
	__u32 pid;
	__u32 zero;
	char comm[16];
};

/* A record: this, its ancestors (nearest first), then three texts. Path and cgroup are lists of names that
 * end in 0 each, the last component first. */
struct record {
	__u64 boot_ns;
	__u64 start_ns;
	__u32 kind;
	__u32 pid;
	__u32 uid;
	__s32 status;		/* of an exit, as wait() tells it */
	char comm[16];
	__u16 path_bytes;
	__u16 cgroup_bytes;
	__u16 arg_bytes;
	__u8 cut;		/* CUT_* */
	__u8 ancestors;
};
#define CUT_ARGS 1
#define CUT_PATH 2
#define CUT_CGROUP 4

/* How many are told per CPU and window of 2^27 ns (about 134 ms), and inside of which cgroup. */
struct bounds {
	__u32 execs;
	__u32 exits;
	__u64 cgroup;		/* 0: everywhere */
	__u32 level;		/* of that cgroup */
	__u32 zero;
};

struct spent {
	__u64 window;
	__u32 execs;
	__u32 exits;
};

struct ended {
	__u64 start_ns;
	__u64 pid;
};

enum loss {
	LOST_RATE_EXEC = 0,
	LOST_RATE_EXIT = 1,
	LOST_FULL_EXEC = 2,
	LOST_FULL_EXIT = 3,
	SEEN_EXEC = 4,
	SEEN_EXIT = 5,
};
#define LOSSES 8

#endif
