"""The check of relevance judgements: whether they speak of queries and candidates that are there."""

from __future__ import annotations

from elva.data.mbeir import (
    contradiction,
    global_pool_file,
    local_pool_file,
    parse_qrel,
    parse_qrels_file,
    query_file,
    shared_local_pool_file,
)
from elva.data.problems import NO_ID, Reader

QRELS_NAME = "mbeir_{dataset}_task{t}_{split}_qrels.txt"


def check_qrels(reader: Reader, relative: str, pools: dict[str, set[str]], qids: dict[str, set[str]]) -> None:
    """Report what is wrong with one file; ``pools`` and ``qids`` hold the ids of every file that was read before."""
    named = parse_qrels_file(relative)
    if named is None:
        reader.report(relative, 0, NO_ID, f"unknown file name, expected {QRELS_NAME}")
        return
    split, dataset, task_id = named
    queries = query_file(split, dataset, task_id)
    if queries not in qids:
        reader.report(relative, 0, NO_ID, f"unreachable qrels: {queries} is missing")
        return
    names = [global_pool_file("train")]
    if split != "train":
        names = [local_pool_file(split, dataset, task_id), shared_local_pool_file(dataset, task_id)]
    pool = next((name for name in names if name in pools), None)
    relevant: dict[str, bool] = {}
    judged: dict[tuple[str, str], int] = {}
    lines = 0
    for number, line in reader.lines(relative):
        lines += 1
        try:
            qid, did, relevance = parse_qrel(line.decode("utf-8"))
        except ValueError as error:
            reader.report(relative, number, NO_ID, str(error))
            continue
        earlier = judged.setdefault((qid, did), relevance)
        if earlier != relevance:
            reader.report(relative, number, qid, contradiction(did, earlier, relevance))
        relevant[qid] = relevant.get(qid, False) or relevance > 0
        if qid not in qids[queries]:
            reader.report(relative, number, qid, f"unreachable qrels: the qid is not in {queries}")
        if pool is not None and relevance > 0 and did not in pools[pool]:
            reader.report(relative, number, qid, f"unreachable qrels: {did} is not in {pool}")
    if not lines:
        reader.report(relative, 0, NO_ID, "no qrels in this file")
    for qid, found in relevant.items():
        if not found:
            reader.report(relative, 0, qid, "no relevant candidate: every relevance is 0, expected one above")
