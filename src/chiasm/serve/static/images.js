// Images a user adds: as data URLs the server reads, not larger than models look at.

const READ = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LONGEST = 2048;

// Raises an Error for a file that the browser cannot show.
export async function dataUrl(file) {
  let shown;
  try {
    shown = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This file"} is no image that can be read.`);
  }
  const scale = Math.min(1, LONGEST / Math.max(shown.width, shown.height));
  if (scale === 1 && READ.includes(file.type)) return asUrl(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(shown.width * scale));
  canvas.height = Math.max(1, Math.round(shown.height * scale));
  canvas.getContext("2d").drawImage(shown, 0, 0, canvas.width, canvas.height);
  return file.type === "image/jpeg" ? canvas.toDataURL("image/jpeg", 0.92) : canvas.toDataURL();
}

function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("This file could not be read."));
    reader.readAsDataURL(file);
  });
}

export function filesOf(transfer) {
  return [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/"));
}
