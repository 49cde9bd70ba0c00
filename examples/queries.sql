-- Questions one asks of a catalog: mmdata query builds/stamps "<one of these>"

-- What was dropped, by which rule, with which values.
SELECT rule, count(*) AS samples, min(value) AS lowest, max(value) AS highest, any_value(threshold) AS threshold
FROM fates WHERE fate = 'dropped' GROUP BY rule ORDER BY samples DESC;

-- Why is this one not in?
SELECT key, fate, sentence FROM explained WHERE key = 'animals/birds/penguin';

-- The pairs that agree least, and still are in.
SELECT s.key, m.text, c.score FROM scores c JOIN samples s USING (sample_id) JOIN members m USING (sample_id)
WHERE s.fate = 'kept' AND c.aligner = 'clip' AND m.name = 'caption' ORDER BY c.score LIMIT 10;

-- Members that could not be read, though their samples could do without them.
SELECT s.key, m.name, m.error FROM members m JOIN samples s USING (sample_id) WHERE m.error IS NOT NULL;

-- What each step of the last run cost.
SELECT step, samples, failed, round(cpu_s, 1) AS cpu_s, peak_rss_bytes // 1048576 AS peak_mb
FROM steps WHERE run_id = (SELECT max(run_id) FROM runs);

-- What lies in two splits: how many kept samples have a twin (equal bytes, or a link of a measure) in another one.
SELECT twins_by, split, other_split, samples, of_samples FROM crossings WHERE samples > 0 ORDER BY samples DESC;

-- What balancing took away: of which kind, and how many stay.
SELECT step, rule, detail, count(*) AS dropped, any_value(threshold) AS stay FROM fates
WHERE step IN ('quota', 'mix') GROUP BY ALL ORDER BY dropped DESC;

-- Who is in another split than when the build before was decided.
SELECT s.key, m.split_before, m.split FROM moved m JOIN samples s USING (sample_id) LIMIT 20;

-- Pairs that a measure found close (pdq, minhash, ...), and what became of both.
SELECT l.measure, l.distance, a.key, a.fate, b.key AS other_key, b.fate AS other_fate
FROM links l JOIN samples a USING (sample_id) JOIN samples b ON b.sample_id = l.other_id ORDER BY l.distance, a.key LIMIT 20;
