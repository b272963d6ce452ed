/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The maps. All but the ring buffer's readers see them through pins below the instance's folder. */
#ifndef AEGIS_OBJECTS_H
#define AEGIS_OBJECTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "aegis_maps.h"

#define ARRAY_OF(map_name, kind, value_type, n) \
	struct { \
		__uint(type, kind); \
		__uint(max_entries, n); \
		__type(key, __u32); \
		__type(value, value_type); \
	} map_name SEC(".maps")

#define HASH_OF(map_name, key_type, value_type, n) \
	struct { \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(max_entries, n); \
		__uint(key_size, sizeof(key_type)); \
		__uint(value_size, sizeof(value_type)); \
	} map_name SEC(".maps")

/* slot -> the generation that judges; MAX_SLOTS + slot -> its candidate. One map, because a look-up that
 * sees two kinds of inner map becomes an indirect call. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2 * MAX_SLOTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(map_flags, BPF_F_INNER_MAP);
		__uint(max_entries, 1);
		__uint(key_size, 4);
		__uint(value_size, BLOCK);
	});
} generations SEC(".maps");

/* slot -> its UDP flows. A map for each service, so that one cannot push out another's. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LRU_HASH);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(struct udp_key));
		__uint(value_size, sizeof(struct udp_flow));
	});
} udp_flows SEC(".maps");

/* A generation names its deadline's cell (ns of the boot clock); old and new never share one. */
ARRAY_OF(deadlines, BPF_MAP_TYPE_ARRAY, __u64, 8 * MAX_SLOTS);
/* Mapped into the agent's memory, which writes single words: the kernel writes others meanwhile. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} controls SEC(".maps");
ARRAY_OF(clocks, BPF_MAP_TYPE_PERCPU_ARRAY, struct clock, 1);
ARRAY_OF(failsafes, BPF_MAP_TYPE_ARRAY, struct failsafe_list, 1);
/* (role * SLOT_ROWS + slot) * COUNTERS + reason */
ARRAY_OF(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u64, 2 * SLOT_ROWS * COUNTERS);

HASH_OF(cgroups, __u64, __u32, 16384);
HASH_OF(literals, struct literal_key, __u32, 16384);	/* 256 services, 32 selectors, 2 paths */
/* Cgroups that failsafe rules name: path -> the agent's name for it, and every cgroup that had this path ->
 * the same. A cgroup that was removed stays until its last socket is gone (on_release). */
HASH_OF(failsafe_paths, struct literal_key, __u64, 16);
HASH_OF(failsafe_cgroups, __u64, __u64, 4096);
HASH_OF(listeners, struct listener_key, __u8, 65536);

/* Ask through own.h. A trie, since a local route may name a prefix. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct own_key));
	__uint(value_size, 1);
} own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct state);
} states SEC(".maps");

/* The map that flows are counted in during this turn; empty: accounting is off. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(struct flow_key));
		__uint(value_size, sizeof(struct flow_count));
	});
} accounts SEC(".maps");

/* Structures that no map's type names, kept in BTF for the layout check. */
const volatile struct descriptor *btf_descriptor __attribute__((unused));
const volatile struct identity *btf_identity __attribute__((unused));
const volatile struct denied *btf_denied __attribute__((unused));
const volatile struct udp_key *btf_udp_key __attribute__((unused));
const volatile struct udp_flow *btf_udp_flow __attribute__((unused));
const volatile struct flow_key *btf_flow_key __attribute__((unused));
const volatile struct flow_count *btf_flow_count __attribute__((unused));
const volatile struct own_key *btf_own_key __attribute__((unused));
const volatile struct listener_key *btf_listener_key __attribute__((unused));

#endif
